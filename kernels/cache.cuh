// A cache of keys and values, the new tokens that go into it, and which places a query may look at.
#pragma once
#include "eight_bit.cuh"
#include "rotary.cuh"

constexpr bool EIGHT = IN_EIGHT_BIT<CACHE>;

// In elements: from a row's piece or a page, a place, a head to the next.
struct Steps { long long piece, place, head; };

// Keys and values (B, capacity, K, D) of CACHE. A row of the batch lies in one piece, or, with a `table`, in
// pages (P, page, K, D) whose numbers the table (B, pages) holds in the order of the places. In 8 bit their scales
// (B, capacity, K, groups) lie likewise.
struct Cache {
    CACHE *keys, *values;
    half *key_scales, *value_scales;
    const int* table;
    Steps steps, scale_steps;
    int page, pages, capacity;

    // How far from the first element a place of a row lies; `place` is below the capacity.
    __device__ long long at(const Steps& by, int batch, int place, int head) const {
        if (!table) return batch * by.piece + place * by.place + head * by.head;
        const int number = place / page;
        return table[(long long)batch * pages + number] * by.piece + (place - number * page) * by.place + head * by.head;
    }
    __device__ long long at(int batch, int place, int head) const { return at(steps, batch, place, head); }
    __device__ CACHE* row(bool value, int batch, int place, int head) const {
        return (value ? values : keys) + at(batch, place, head);
    }
    __device__ half* scales(bool value, int batch, int place, int head) const {
        return (value ? value_scales : key_scales) + at(scale_steps, batch, place, head);
    }
};

// New tokens (B, T, H + 2 K, D) of REAL: their queries, keys and values beside each other.
struct NewTokens {
    const REAL* packed;
    const long long* starts;  // (B,), or null: `start` in every row
    Turn turn;
    int tokens, heads, kv_heads, width, start;

    __device__ const REAL* head(int batch, int token, int number) const {
        return packed + (((long long)batch * tokens + token) * (heads + 2 * kv_heads) + number) * width;
    }
    // Where token 0 of a row goes in the cache.
    __device__ int first_place(int batch) const { return starts ? (int)starts[batch] : start; }
};

struct Limits { const long long* lengths; long long window; int stop; bool causal; };

// The places that the queries of one row may look at: low(t) .. high(t) - 1, neither of which ever falls.
struct Sight {
    long long first, window;  // place of query 0
    int stop;
    bool causal;

    __device__ Sight(const NewTokens& fresh, const Limits& limits, int batch) : window(limits.window), causal(limits.causal) {
        const long long length = limits.lengths ? limits.lengths[batch] : limits.stop;
        first = fresh.starts ? fresh.starts[batch] : length - fresh.tokens;
        stop = (int)max(0LL, min(length, (long long)limits.stop));
    }
    __device__ int high(int token) const {
        return causal ? (int)max(0LL, min((long long)stop, first + token + 1)) : stop;
    }
    __device__ int low(int token) const {
        return (int)max(0LL, min((long long)stop, first + token - window + 1));
    }
};
