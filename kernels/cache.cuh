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

// A new head as attention takes it: normed by `root` and `gain`, and rounded as it would be in memory, or as it lies.
struct NewHead {
    const REAL* numbers;
    const REAL* gain;  // null: not normed
    float root;

    __device__ float operator[](int column) const {
        const float x = widen(numbers[column]);
        return gain ? widen(narrow<REAL>(x * root * widen(gain[column]))) : x;
    }
};

// New tokens (B, T, H + 2 K, D) of REAL: their queries, keys and values beside each other. Where queries and keys are
// normed (RMS), there are roots for a block's queries, and for the keys of its new tokens.
struct NewTokens {
    const REAL* packed;
    const long long* starts;  // (B,), or null: `start` in every row
    Turn turn;
    int tokens, heads, kv_heads, width, start;
    const REAL* q_gain = nullptr;
    const REAL* k_gain = nullptr;
    const float* query_roots = nullptr;
    const float* key_roots = nullptr;

    __device__ NewHead query(int batch, int token, int number, int r) const {
        return {head(batch, token, number), q_gain, q_gain ? query_roots[r] : 1.0f};
    }
    __device__ NewHead key(int batch, int token, int kv) const {
        return {head(batch, token, heads + kv), k_gain, k_gain ? key_roots[token] : 1.0f};
    }
    __device__ NewHead value(int batch, int token, int kv) const {
        return {head(batch, token, heads + kv_heads + kv), nullptr, 1.0f};
    }
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
