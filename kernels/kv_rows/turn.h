/* Transposing small squares in registers. */
#pragma once
#include "../simd.h"

typedef uint32_t u4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint16_t u8 __attribute__((vector_size(16), aligned(2), may_alias));
#ifdef __clang__
#define PICK(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(type, a, b, ...) __builtin_shuffle(a, b, (type){__VA_ARGS__})
#endif
#define ZIP4(a, b) PICK(u4, a, b, 0, 4, 1, 5), PICK(u4, a, b, 2, 6, 3, 7)
#define ZIP8(a, b) PICK(u8, a, b, 0, 8, 1, 9, 2, 10, 3, 11), PICK(u8, a, b, 4, 12, 5, 13, 6, 14, 7, 15)

/* Four pieces of four tokens that lie side by side: log2(4) times zip the first half of the lines with the second. */
INLINE void turn4(char *out, int64_t row, const char *in, int64_t line) {
    u4 a[4], b[4];
    for (int i = 0; i < 4; i++) a[i] = *(const u4 *)(in + i * line);
    for (int i = 0; i < 2; i++) memcpy(b + 2 * i, (u4[]){ZIP4(a[i], a[i + 2])}, 32);
    for (int i = 0; i < 2; i++) memcpy(a + 2 * i, (u4[]){ZIP4(b[i], b[i + 2])}, 32);
    for (int i = 0; i < 4; i++) *(u4 *)(out + i * row) = a[i];
}

/* Eight pieces of eight tokens. */
INLINE void turn8(char *out, int64_t row, const char *in, int64_t line) {
    u8 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = *(const u8 *)(in + i * line);
    for (int i = 0; i < 4; i++) memcpy(b + 2 * i, (u8[]){ZIP8(a[i], a[i + 4])}, 32);
    for (int i = 0; i < 4; i++) memcpy(a + 2 * i, (u8[]){ZIP8(b[i], b[i + 4])}, 32);
    for (int i = 0; i < 4; i++) memcpy(b + 2 * i, (u8[]){ZIP8(a[i], a[i + 4])}, 32);
    for (int i = 0; i < 8; i++) *(u8 *)(out + i * row) = b[i];
}
