/* One float vector as wide as the machine has, in portable vector extensions; intrinsics only where they lose. */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define WIDE_REGISTERS 1
#elif defined(__AVX2__)
#define LANES 8
#define WIDE_REGISTERS 0
#elif defined(__aarch64__)
#define LANES 4
#define WIDE_REGISTERS 1
#else
#define LANES 4
#define WIDE_REGISTERS 0
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES), may_alias));
typedef float vf_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t vu_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(2 * LANES), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

enum dtype { F32 = 0, BF16 = 1, F16 = 2 };

INLINE vf load(const float *p) { return *(const vf_any *)p; }
INLINE void store(float *p, vf x) { *(vf_any *)p = x; }

INLINE vf splat(float x) {
#if LANES == 16
    return (vf){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif LANES == 8
    return (vf){x, x, x, x, x, x, x, x};
#else
    return (vf){x, x, x, x};
#endif
}

INLINE vf lane_index(void) {
#if LANES == 16
    return (vf){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif LANES == 8
    return (vf){0, 1, 2, 3, 4, 5, 6, 7};
#else
    return (vf){0, 1, 2, 3};
#endif
}

INLINE vf pick(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

INLINE vf vmax(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return pick((vi)(a > b), a, b);
#endif
}

/* a * b + c, rounded once wherever the machine can: the compiler may split a sum of products where it thinks that faster,
 * and differently for each number of rows. */
INLINE vf vfma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

INLINE float reduce_max(vf x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float best = x[0];
    for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
    return best;
#endif
}

INLINE float reduce_sum(vf x) {
    float lanes[LANES], sum = 0;
    store(lanes, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    sum = lanes[0];
    return sum;
}

/* 2^x for x <= 0, relative error 1e-7; exactly 0 below 2^-126 (so -inf gives 0). */
INLINE vf exp2_nonpositive(vf x) {
    const vf magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    vi dead = (vi)(x < splat(-126.0f));
    x = vmax(x, splat(-126.0f));
    vf shifted = x + magic;
    vf r = x - (shifted - magic);
    vf p = splat(0x1.443fffp-13f);
    p = p * r + splat(0x1.5f48c0p-10f);
    p = p * r + splat(0x1.3b2a1bp-7f);
    p = p * r + splat(0x1.c6aeccp-5f);
    p = p * r + splat(0x1.ebfbe0p-3f);
    p = p * r + splat(0x1.62e430p-1f);
    p = p * r + splat(1.0f);
    vi bits = (vi)p + (((vi)shifted - (vi)magic) << 23);
    return (vf)(bits & ~dead);
}

INLINE float exp2_scalar(float x) {
    vf r = exp2_nonpositive(splat(x));
    return r[0];
}

/* tanh with a relative error of a few ulp: a polynomial near 0 (where 1 - 2/(e+1) cancels), the exponential beyond. */
INLINE vf tanh_any(vf x) {
    vi sign = (vi)x & (vi)splat(-0.0f);
    vf a = (vf)((vi)x & ~(vi)splat(-0.0f));
    vf e = exp2_nonpositive(a * splat(-2.8853900817779268f));
    vf far = (splat(1.0f) - e) / (splat(1.0f) + e);
    vf z = a * a;
    vf p = splat(-5.70498872745e-3f);
    p = p * z + splat(2.06390887954e-2f);
    p = p * z + splat(-5.37397155531e-2f);
    p = p * z + splat(1.33314422036e-1f);
    p = p * z + splat(-3.33332819422e-1f);
    vf near = p * z * a + a;
    return (vf)((vi)pick((vi)(a < splat(0.625f)), near, far) | sign);
}

INLINE float f16_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff, bits;
    float f;
    if (rest >= 0x7c00) bits = 0x7f800000u | (rest << 13);
    else if (rest >= 0x0400) bits = (rest << 13) + (112u << 23);
    else {
        f = (float)rest * 0x1p-24f;
        memcpy(&bits, &f, 4);
    }
    bits |= sign;
    memcpy(&f, &bits, 4);
    return f;
}

INLINE vf load_as(const void *base, ptrdiff_t i, const int type) {
    if (type == F32) return load((const float *)base + i);
    const uint16_t *p = (const uint16_t *)base + i;
    if (type == BF16) return (vf)(__builtin_convertvector(*(const vh_any *)p, vu) << 16);
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    float lanes[LANES];
    for (int j = 0; j < LANES; j++) lanes[j] = f16_to_float(p[j]);
    return load(lanes);
#endif
}

INLINE float scalar_as(const void *base, ptrdiff_t i, const int type) {
    if (type == F32) return ((const float *)base)[i];
    uint16_t h = ((const uint16_t *)base)[i];
    if (type == F16) return f16_to_float(h);
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* Round to nearest even. */
INLINE uint16_t float_to_f16(float f) {
    uint32_t bits, sign;
    memcpy(&bits, &f, 4);
    sign = (bits >> 16) & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (bits >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (bits < 0x38800000) { /* subnormal: let the float unit round at 2^-24 */
        float a, shift = 0.5f;
        memcpy(&a, &bits, 4);
        a += shift;
        memcpy(&bits, &a, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    bits += 0xfff + ((bits >> 13) & 1);
    return (uint16_t)(sign | ((bits - (112u << 23)) >> 13));
}

INLINE void store_as(void *base, ptrdiff_t i, vf x, const int type) {
    if (type == F32) {
        store((float *)base + i, x);
        return;
    }
    uint16_t *p = (uint16_t *)base + i;
    if (type == BF16) {
        vu bits = (vu)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        vu nan = (vu)(x != x);
        *(vh_any *)p = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), vh);
        return;
    }
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
    float lanes[LANES];
    store(lanes, x);
    for (int j = 0; j < LANES; j++) p[j] = float_to_f16(lanes[j]);
#endif
}
