// Choosing among classes: the smallest value that top k and top p leave, and a draw from what is left.
#pragma once

#include "philox.h"
#include "simd.h"

namespace ISA {

// Classes whose largest logit and mass are kept together: most of such blocks are never looked at again.
constexpr int64_t CLASSES = 64;

struct Candidate {
    float value, power;
};

// What stands strictly above a value.
struct Above {
    int64_t count;
    double mass;
};

// The smallest value of some candidates above which stand fewer than `most` of them with less mass than
// `goal`: a quickselect that counts mass. Their order changes.
static inline float edge_of(Candidate* some, int64_t count, int64_t most, double goal, Above& above) {
    float edge = INFINITY;
    above = {0, 0};
    while (count > 0) {
        const float a = some[0].value, b = some[count / 2].value, c = some[count - 1].value;
        const float pivot = a > b ? (b > c ? b : a > c ? c : a) : (a > c ? a : b > c ? c : b);
        // Three ways: larger ones to the front, smaller ones to the back.
        int64_t larger = 0, smaller = count;
        Above here = above;
        double equal = 0;
        for (int64_t i = 0; i < smaller;) {
            const Candidate one = some[i];
            if (one.value > pivot) {
                here.count++;
                here.mass += double(one.power);
                some[i++] = some[larger];
                some[larger++] = one;
            } else if (one.value < pivot) {
                some[i] = some[--smaller];
                some[smaller] = one;
            } else {
                equal += double(one.power);
                i++;
            }
        }
        if (here.count >= most || !(here.mass < goal)) {
            if (larger == 0) break;  // nothing is allowed: a goal of 0
            count = larger;
            continue;
        }
        edge = pivot;
        above = here;
        const Above next{here.count + smaller - larger, here.mass + equal};
        if (next.count >= most || !(next.mass < goal)) break;
        Above rest = next;
        some += smaller;
        count -= smaller;
        if (count == 0) break;
        above = rest;
    }
    return edge;
}

// The `n`-th largest of some values, counted from 1. Their order changes.
static inline float nth_largest(float* values, int64_t count, int64_t n) {
    int64_t first = 0, last = count - 1;
    while (first < last) {
        const float pivot = values[first + (last - first) / 2];
        int64_t i = first, j = last;
        while (i <= j) {
            while (values[i] > pivot) i++;
            while (values[j] < pivot) j--;
            if (i > j) break;
            const float other = values[i];
            values[i++] = values[j];
            values[j--] = other;
        }
        if (n - 1 <= j) last = j;
        else if (n - 1 >= i) first = i;
        else break;
    }
    return values[n - 1];
}

}  // namespace ISA
