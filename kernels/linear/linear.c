/* y = x W^T + b for few rows. W stays as the checkpoint has it, [n, k] row by row, and is read once from memory whatever
 * the number of rows: a tile of MT x NT sums lives in registers, and while one pair of weight rows is worked on, the next
 * is fetched. Each sum is added up in the same order for any number of rows, so a row's result does not depend on what
 * else is in the step.
 */
#include "../simd.h"

/* Rows of x and of W in one tile: MT * NT sums, NT weights and one x fill the registers. Up to FEW rows of x take twice
 * as many of W: two sums alone would wait for each other. */
#define MT 6
#define FEW 3
#if WIDE_REGISTERS
#define NT 4
#else
#define NT 2
#endif
#define NW (2 * NT)
#define LINE 64 /* bytes that one prefetch brings */

/* torch's OpenMP runtime, if it is in the process. */
extern int omp_get_max_threads(void) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));
extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));

struct linear {
    const void *weight; /* [n, k] */
    int64_t n, k, type;
    int64_t limit; /* rows up to which this kernel is used, for the caller */
};

/* The sums over the lanes of four vectors. */
INLINE void sum4(vf a, vf b, vf c, vf d, float *out) {
#if LANES >= 8 && defined(__AVX2__)
#if LANES == 16
#define HALF(x) _mm256_add_ps(_mm512_castps512_ps256((__m512)x), \
        _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)x), 1)))
#else
#define HALF(x) ((__m256)x)
#endif
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(HALF(a), HALF(b)), _mm256_hadd_ps(HALF(c), HALF(d)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
#undef HALF
#else
    out[0] = reduce_sum(a), out[1] = reduce_sum(b), out[2] = reduce_sum(c), out[3] = reduce_sum(d);
#endif
}

INLINE void store_scalar(void *base, ptrdiff_t i, float x, const int type) {
    if (type == F32) ((float *)base)[i] = x;
    else if (type == F16) ((uint16_t *)base)[i] = float_to_f16(x);
    else {
        uint32_t bits;
        memcpy(&bits, &x, 4);
        ((uint16_t *)base)[i] = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}

/* What a tile brings into the cache for later: `ahead` bytes further on in those of its weight rows that `rows` names. */
struct fetch { ptrdiff_t ahead; unsigned rows; };

/* y[0..m, at..at+n) of x [m, k] (float) and the weight rows at..at+n. */
INLINE void tile(const struct linear *l, const float *x, const void *bias, void *y, ptrdiff_t at, struct fetch next,
                 const int type, const int m, const int n) {
    const ptrdiff_t k = l->k, first = at * k, size = type == F32 ? 4 : 2;
    const int unroll = LINE / (int)(LANES * size);
    const char *weight = (const char *)l->weight + first * size + next.ahead;
    vf acc[MT][NW];
#pragma GCC unroll 6
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n; j++) acc[i][j] = splat(0);
#define STEP(c)                                                                                    \
    {                                                                                              \
        vf w[NW];                                                                                  \
        _Pragma("GCC unroll 8") for (int j = 0; j < n; j++) w[j] = load_as(l->weight, first + j * k + (c), type); \
        _Pragma("GCC unroll 6") for (int i = 0; i < m; i++) {                                      \
            vf v = load(x + i * k + (c));                                                          \
            _Pragma("GCC unroll 8") for (int j = 0; j < n; j++) acc[i][j] = vfma(v, w[j], acc[i][j]); \
        }                                                                                          \
    }
    ptrdiff_t c = 0;
    for (; c + unroll * LANES <= k; c += unroll * LANES) {
#pragma GCC unroll 8
        for (int j = 0; j < n; j++)
            if (next.rows >> j & 1) __builtin_prefetch(weight + (j * k + c) * size, 0, 3);
#pragma GCC unroll 8
        for (int u = 0; u < unroll; u++) STEP(c + u * LANES)
    }
    for (; c + LANES <= k; c += LANES) STEP(c)
#undef STEP
    float sums[MT * NT + 4];
    const vf zero = splat(0);
#define ACC(s) ((s) < m * n ? acc[(s) / n][(s) % n] : zero)
#pragma GCC unroll 6
    for (int s = 0; s < m * n; s += 4) sum4(ACC(s), ACC(s + 1), ACC(s + 2), ACC(s + 3), sums + s);
#undef ACC
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            float sum = sums[i * n + j];
            for (ptrdiff_t t = c; t < k; t++) sum = fmaf(x[i * k + t], scalar_as(l->weight, first + j * k + t, type), sum);
            if (bias) sum += scalar_as(bias, at + j, type);
            store_scalar(y, i * l->n + at + j, sum, type);
        }
}

#define TILE(m) case m: tile(l, x, bias, y, at, next, type, m, n); break;

/* All rows of x against weight rows at..at+n, in tiles; together they fetch what the next tiles need. */
INLINE void strip(const struct linear *l, const float *x, const void *bias, char *y, ptrdiff_t rows, ptrdiff_t at,
                  ptrdiff_t ahead, const int type, const int n) {
    const int groups = (int)((rows + MT - 1) / MT), share = groups >= n ? 1 : groups == 1 ? n : n / groups;
    int group = 0;
    for (ptrdiff_t m; rows > 0; rows -= m, group++) {
        struct fetch next = {ahead, group * share < n && ahead ? ((1u << share) - 1) << group * share : 0};
        m = rows <= MT ? rows : rows >= 2 * MT ? MT : (rows + 1) / 2; /* 4 + 3 rather than 6 + 1 */
        if (n == NW) switch (m) { TILE(1) TILE(2) TILE(3) }
        else switch (m) { TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) }
        x += m * l->k;
        y += m * l->n * (type == F32 ? 4 : 2);
    }
}

/* How far ahead to fetch: two strips where rows are short, else within the row. One row alone leaves it to the machine:
 * its loads are the prefetch. */
static ptrdiff_t distance(const struct linear *l, ptrdiff_t rows) {
    ptrdiff_t row = l->k * (l->type == F32 ? 4 : 2);
    return rows < 2 && l->type == F32 ? 0 : NT * row <= 16384 ? 2 * NT * row : 4096;
}

#define PART(type)                                                                                                 \
    static void part_##type(const struct linear *l, const float *x, const void *bias, void *y, ptrdiff_t rows,     \
                            ptrdiff_t from, ptrdiff_t to) {                                                        \
        ptrdiff_t ahead = distance(l, rows);                                                                       \
        if (rows <= FEW)                                                                                           \
            for (; from + NW <= to; from += NW) strip(l, x, bias, y, rows, from, ahead, type, NW);                 \
        else                                                                                                       \
            for (; from + NT <= to; from += NT) strip(l, x, bias, y, rows, from, ahead, type, NT);                 \
        for (; from < to; from++) strip(l, x, bias, y, rows, from, 0, type, 1);                                    \
    }
PART(F32)
PART(BF16)
PART(F16)

struct call { const struct linear *l; const float *x; const void *bias; void *y; ptrdiff_t rows; };

static void share(void *data) {
    const struct call *c = data;
    const struct linear *l = c->l;
    ptrdiff_t all = omp_get_num_threads ? omp_get_num_threads() : 1, t = omp_get_thread_num ? omp_get_thread_num() : 0;
    ptrdiff_t strips = (l->n + NT - 1) / NT, from = strips * t / all * NT, to = strips * (t + 1) / all * NT;
    if (to > l->n) to = l->n;
    if (l->type == F32) part_F32(l, c->x, c->bias, c->y, c->rows, from, to);
    else if (l->type == BF16) part_BF16(l, c->x, c->bias, c->y, c->rows, from, to);
    else part_F16(l, c->x, c->bias, c->y, c->rows, from, to);
}

/* x [rows, k] float, y [rows, n] and bias [n] or null of the weight's type. */
void thriftree_linear(const struct linear *l, const float *x, const void *bias, void *y, int64_t rows) {
    if (rows <= 0) return;
    struct call c = {l, x, bias, y, rows};
    int threads = omp_get_max_threads ? omp_get_max_threads() : 1;
    if (threads > 1 && GOMP_parallel) GOMP_parallel(share, &c, threads, 0);
    else share(&c);
}

/* x [count] of a 16-bit type as float. */
void thriftree_widen(const void *x, float *out, int64_t count, int64_t type) {
    for (int64_t i = 0; i < count; i++) out[i] = scalar_as(x, i, (int)type);
}
