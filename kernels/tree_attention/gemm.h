/* The two small products of attention. Both keep a block of rows x vectors in registers and stream the cache once. */
#pragma once
#include "simd.h"

#define MAX_ROWS 6
/* Vectors per register block: few rows take long blocks (linear reads of the cache), many rows take short ones. */
#if WIDE_REGISTERS
#define VECTORS(rows) ((rows) <= 3 ? 8 : 4)
#else
#define VECTORS(rows) ((rows) <= 3 ? 4 : 2)
#endif

/* s[r, 0..n) = q[r, :] . k[:, 0..n), k stored [dim, tokens] as the cache does. */
INLINE void scores_block(const float *q, int dim, const float *k, ptrdiff_t k_row, float *s, ptrdiff_t s_row,
                         const int rows, const int vectors) {
    vf acc[MAX_ROWS][8];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) acc[r][v] = splat(0);
    for (int d = 0; d < dim; d++, k += k_row) {
        vf kv[8];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) kv[v] = load(k + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            vf x = splat(q[(ptrdiff_t)r * dim + d]);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) acc[r][v] += x * kv[v];
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) store(s + r * s_row + v * LANES, acc[r][v]);
}

/* o[r, 0..width) = alpha[r] * o[r, :] + p[r, 0..n) . v[0..n, :]; width = vectors * LANES. */
INLINE void values_block(const float *p, ptrdiff_t p_row, int n, const float *v, ptrdiff_t v_row, float *o, int dim,
                         const float *alpha, const int rows, const int vectors) {
    vf acc[MAX_ROWS][8];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        vf a = splat(alpha ? alpha[r] : 1.0f);
#pragma GCC unroll 8
        for (int i = 0; i < vectors; i++) acc[r][i] = a * load(o + (ptrdiff_t)r * dim + i * LANES);
    }
    for (int t = 0; t < n; t++, v += v_row) {
        vf vv[8];
#pragma GCC unroll 8
        for (int i = 0; i < vectors; i++) vv[i] = load(v + i * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            vf x = splat(p[r * p_row + t]);
#pragma GCC unroll 8
            for (int i = 0; i < vectors; i++) acc[r][i] += x * vv[i];
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int i = 0; i < vectors; i++) store(o + (ptrdiff_t)r * dim + i * LANES, acc[r][i]);
}

/* Walk `total` columns in blocks of the widest, then 4, 2, 1 vectors. */
#define SWEEP(rows, total, CALL)                                                 \
    int c = 0;                                                                   \
    for (; c + VECTORS(rows) * LANES <= (total); c += VECTORS(rows) * LANES) {   \
        CALL(rows, VECTORS(rows));                                               \
    }                                                                            \
    if (VECTORS(rows) > 4 && c + 4 * LANES <= (total)) { CALL(rows, 4); c += 4 * LANES; } \
    if (VECTORS(rows) > 2 && c + 2 * LANES <= (total)) { CALL(rows, 2); c += 2 * LANES; } \
    if (c + LANES <= (total)) { CALL(rows, 1); }

#define SCORES(rows)                                                                                              \
    static void scores_##rows(const float *q, int dim, const float *k, ptrdiff_t k_row, float *s, ptrdiff_t s_row, \
                              int n) {                                                                            \
        SWEEP(rows, n, SCORES_CALL)                                                                               \
    }
#define SCORES_CALL(rows, vectors) scores_block(q, dim, k + c, k_row, s + c, s_row, rows, vectors)
SCORES(1) SCORES(2) SCORES(3) SCORES(4) SCORES(5) SCORES(6)

#define VALUES(rows)                                                                                             \
    static void values_##rows(const float *p, ptrdiff_t p_row, int n, const float *v, ptrdiff_t v_row, float *o, \
                              int dim, const float *alpha) {                                                     \
        SWEEP(rows, dim, VALUES_CALL)                                                                            \
    }
#define VALUES_CALL(rows, vectors) values_block(p, p_row, n, v + c, v_row, o + c, dim, alpha, rows, vectors)
VALUES(1) VALUES(2) VALUES(3) VALUES(4) VALUES(5) VALUES(6)

/* Rows of the next block: full blocks, then two even ones rather than 6 + 1. */
INLINE int next_rows(int left) { return left >= 2 * MAX_ROWS || left <= MAX_ROWS ? (left < MAX_ROWS ? left : MAX_ROWS) : (left + 1) / 2; }

static void scores(int m, const float *q, int dim, const float *k, ptrdiff_t k_row, float *s, ptrdiff_t s_row, int n) {
    for (int r; m > 0; m -= r, q += (ptrdiff_t)r * dim, s += r * s_row) {
        r = next_rows(m);
        switch (r) {
        case 1: scores_1(q, dim, k, k_row, s, s_row, n); break;
        case 2: scores_2(q, dim, k, k_row, s, s_row, n); break;
        case 3: scores_3(q, dim, k, k_row, s, s_row, n); break;
        case 4: scores_4(q, dim, k, k_row, s, s_row, n); break;
        case 5: scores_5(q, dim, k, k_row, s, s_row, n); break;
        default: scores_6(q, dim, k, k_row, s, s_row, n);
        }
    }
}

static void values(int m, const float *p, ptrdiff_t p_row, int n, const float *v, ptrdiff_t v_row, float *o, int dim,
                   const float *alpha) {
    for (int r; m > 0; m -= r, p += r * p_row, o += (ptrdiff_t)r * dim, alpha = alpha ? alpha + r : NULL) {
        r = next_rows(m);
        switch (r) {
        case 1: values_1(p, p_row, n, v, v_row, o, dim, alpha); break;
        case 2: values_2(p, p_row, n, v, v_row, o, dim, alpha); break;
        case 3: values_3(p, p_row, n, v, v_row, o, dim, alpha); break;
        case 4: values_4(p, p_row, n, v, v_row, o, dim, alpha); break;
        case 5: values_5(p, p_row, n, v, v_row, o, dim, alpha); break;
        default: values_6(p, p_row, n, v, v_row, o, dim, alpha);
        }
    }
}
