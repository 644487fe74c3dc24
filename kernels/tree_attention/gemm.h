/* The two small products of attention. Both keep a block of rows x vectors in registers and stream the cache once. */
#pragma once
#include "../simd.h"

#define MAX_ROWS 6
/* Vectors per register block: few rows take long blocks (linear reads of the cache), many rows take short ones. */
#if WIDE_REGISTERS
#define VECTORS(rows) ((rows) <= 3 ? 8 : 4)
#else
#define VECTORS(rows) ((rows) <= 3 ? 4 : 2)
#endif

/* What to bring in while computing: `lines` cache lines in each of the next `steps` steps of the inner loop. */
struct ahead { const char *at; ptrdiff_t stride; int lines, steps; };

INLINE void fetch(struct ahead *a) {
    if (a->steps <= 0) return;
    for (int i = 0; i < a->lines; i++) __builtin_prefetch(a->at + 64 * i, 0, 3);
    a->at += a->stride;
    a->steps--;
}

/* s[r, 0..n) = q[r, :] . k[:, 0..n), k stored [dim, tokens] as the cache does. */
INLINE void scores_block(const float *q, int dim, const void *k, ptrdiff_t k_row, float *s, ptrdiff_t s_row,
                         struct ahead *ahead, const int type, const int rows, const int vectors) {
    vf acc[MAX_ROWS][8];
    struct ahead next = *ahead;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) acc[r][v] = splat(0);
    for (int d = 0; d < dim; d++) {
        vf kv[8];
        fetch(&next);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) kv[v] = load_as(k, d * k_row + v * LANES, type);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            vf x = splat(q[(ptrdiff_t)r * dim + d]);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) acc[r][v] += x * kv[v];
        }
    }
    *ahead = next;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) store(s + r * s_row + v * LANES, acc[r][v]);
}

/* o[r, 0..width) = alpha[r] * o[r, :] + p[r, 0..n) . v[0..n, :]; width = vectors * LANES. */
INLINE void values_block(const float *p, ptrdiff_t p_row, int n, const void *v, ptrdiff_t v_row, float *o, int dim,
                         const float *alpha, struct ahead *ahead, const int type, const int rows, const int vectors) {
    vf acc[MAX_ROWS][8];
    struct ahead next = *ahead;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        vf a = splat(alpha ? alpha[r] : 1.0f);
#pragma GCC unroll 8
        for (int i = 0; i < vectors; i++) acc[r][i] = a * load(o + (ptrdiff_t)r * dim + i * LANES);
    }
    for (int t = 0; t < n; t++) {
        vf vv[8];
        fetch(&next);
#pragma GCC unroll 8
        for (int i = 0; i < vectors; i++) vv[i] = load_as(v, t * v_row + i * LANES, type);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            vf x = splat(p[r * p_row + t]);
#pragma GCC unroll 8
            for (int i = 0; i < vectors; i++) acc[r][i] += x * vv[i];
        }
    }
    *ahead = next;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int i = 0; i < vectors; i++) store(o + (ptrdiff_t)r * dim + i * LANES, acc[r][i]);
}

/* Element `i` of a matrix of this type. */
INLINE const void *at(const void *base, ptrdiff_t i, const int type) {
    return (const char *)base + i * (type == F32 ? 4 : 2);
}

/* Walk `total` columns in blocks of the widest, then 4, 2, 1 vectors. */
#define SWEEP(rows, total, BLOCK)                                                  \
    int c = 0;                                                                     \
    for (; c + VECTORS(rows) * LANES <= (total); c += VECTORS(rows) * LANES) {     \
        BLOCK(rows, VECTORS(rows));                                                \
    }                                                                              \
    if (VECTORS(rows) > 4 && c + 4 * LANES <= (total)) {                           \
        BLOCK(rows, 4);                                                            \
        c += 4 * LANES;                                                            \
    }                                                                              \
    if (VECTORS(rows) > 2 && c + 2 * LANES <= (total)) {                           \
        BLOCK(rows, 2);                                                            \
        c += 2 * LANES;                                                            \
    }                                                                              \
    if (c + LANES <= (total)) {                                                    \
        BLOCK(rows, 1);                                                            \
        c += LANES;                                                                \
    }

#define SCORES_BLOCK(rows, vectors) \
    scores_block(q, dim, at(k, c, type), k_row, s + c, s_row, ahead, type, rows, vectors)
#define VALUES_BLOCK(rows, vectors) \
    values_block(p, p_row, n, at(v, c, type), v_row, o + c, dim, alpha, ahead, type, rows, vectors)

/* Rows of the next block: full blocks, then two even ones rather than 6 + 1. */
INLINE int next_rows(int left) {
    if (left <= MAX_ROWS) return left;
    return left >= 2 * MAX_ROWS ? MAX_ROWS : (left + 1) / 2;
}

INLINE void scores_any(int m, const float *q, int dim, const void *k, ptrdiff_t k_row, float *s, ptrdiff_t s_row, int n,
                       struct ahead *ahead, const int type) {
    for (int r; m > 0; m -= r, q += (ptrdiff_t)r * dim, s += r * s_row) {
        r = next_rows(m);
        switch (r) {
        case 1: { SWEEP(1, n, SCORES_BLOCK) break; }
        case 2: { SWEEP(2, n, SCORES_BLOCK) break; }
        case 3: { SWEEP(3, n, SCORES_BLOCK) break; }
        case 4: { SWEEP(4, n, SCORES_BLOCK) break; }
        case 5: { SWEEP(5, n, SCORES_BLOCK) break; }
        default: { SWEEP(6, n, SCORES_BLOCK) }
        }
    }
}

INLINE void values_any(int m, const float *p, ptrdiff_t p_row, int n, const void *v, ptrdiff_t v_row, float *o, int dim,
                       const float *alpha, struct ahead *ahead, const int type) {
    for (int r; m > 0; m -= r, p += r * p_row, o += (ptrdiff_t)r * dim) {
        r = next_rows(m);
        switch (r) {
        case 1: { SWEEP(1, dim, VALUES_BLOCK) break; }
        case 2: { SWEEP(2, dim, VALUES_BLOCK) break; }
        case 3: { SWEEP(3, dim, VALUES_BLOCK) break; }
        case 4: { SWEEP(4, dim, VALUES_BLOCK) break; }
        case 5: { SWEEP(5, dim, VALUES_BLOCK) break; }
        default: { SWEEP(6, dim, VALUES_BLOCK) }
        }
        if (alpha) alpha += r;
    }
}

#define PRODUCTS(type)                                                                                              \
    static void scores_##type(int m, const float *q, int dim, const void *k, ptrdiff_t k_row, float *s,             \
                              ptrdiff_t s_row, int n, struct ahead *ahead) {                                        \
        scores_any(m, q, dim, k, k_row, s, s_row, n, ahead, type);                                                  \
    }                                                                                                               \
    static void values_##type(int m, const float *p, ptrdiff_t p_row, int n, const void *v, ptrdiff_t v_row,        \
                              float *o, int dim, const float *alpha, struct ahead *ahead) {                         \
        values_any(m, p, p_row, n, v, v_row, o, dim, alpha, ahead, type);                                           \
    }
PRODUCTS(F32)
PRODUCTS(BF16)
PRODUCTS(F16)
