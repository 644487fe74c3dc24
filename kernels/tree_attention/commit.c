/* Write the K and V of accepted rows of all layers into their cache slots, in one call. */
#include <stdint.h>
#include <string.h>

/* Kept in step with commit.py. All layers share shapes and strides. */
struct commit {
    const char *const *keys, *const *values;
    char *const *key_caches, *const *value_caches;
    const int32_t *rows;
    const int64_t *slots;
    int64_t k_row, k_head, v_row, v_head, kc_block, kc_head, vc_block, vc_head;
    int32_t layers, count, kv_heads, dim, block, elem, threads, packed;
};

extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

static char *key_slot(const struct commit *c, int32_t layer, int32_t head, int64_t slot) {
    return c->key_caches[layer] + (slot / c->block * c->kc_block + head * c->kc_head + slot % c->block) * c->elem;
}

/* A key is a column of its block: one cache line per element, so ask for all of them before writing any. */
static void commit_head(const struct commit *c, int32_t layer, int32_t head) {
    int64_t line = (int64_t)c->block * c->elem;
    for (int32_t i = 0; i < c->count; i++) {
        if (c->slots[i] < 0) continue;
        char *to = key_slot(c, layer, head, c->slots[i]);
        for (int32_t d = 0; d < c->dim; d++) __builtin_prefetch(to + d * line, 1, 3);
    }
    for (int32_t i = 0; i < c->count; i++) {
        int64_t slot = c->slots[i];
        if (slot < 0) continue;
        const char *key = c->keys[layer] + (c->rows[i] * c->k_row + head * c->k_head) * c->elem;
        const char *value = c->values[layer] + (c->rows[i] * c->v_row + head * c->v_head) * c->elem;
        char *to = key_slot(c, layer, head, slot);
        int64_t at = slot / c->block * c->vc_block + head * c->vc_head + slot % c->block * c->dim;
        for (int32_t d = 0; d < c->dim; d++) {
            if (c->elem == 4) memcpy(to + d * line, key + 4 * d, 4);
            else memcpy(to + d * line, key + 2 * d, 2);
        }
        memcpy(c->value_caches[layer] + at * c->elem, value, (size_t)c->dim * c->elem);
    }
}

/* AMX layout (16 bits): keys as [token / 16][dim / 2][16][2], values as [dim / 16][token / 2][16][2]. */
static void commit_packed(const struct commit *c, int32_t layer, int32_t head) {
    for (int32_t i = 0; i < c->count; i++) {
        if (c->slots[i] < 0) continue;
        int64_t block = c->slots[i] / c->block, t = c->slots[i] % c->block;
        const uint16_t *key = (const uint16_t *)c->keys[layer] + c->rows[i] * c->k_row + head * c->k_head;
        const uint16_t *value = (const uint16_t *)c->values[layer] + c->rows[i] * c->v_row + head * c->v_head;
        uint16_t *k = (uint16_t *)c->key_caches[layer] + block * c->kc_block + head * c->kc_head;
        uint16_t *v = (uint16_t *)c->value_caches[layer] + block * c->vc_block + head * c->vc_head;
        for (int32_t d = 0; d < c->dim; d++) {
            k[t / 16 * 16 * c->dim + d / 2 * 32 + t % 16 * 2 + d % 2] = key[d];
            v[d / 16 * 16 * (int64_t)c->block + t / 2 * 32 + d % 16 * 2 + t % 2] = value[d];
        }
    }
}

static void commit_layer(const struct commit *c, int32_t layer) {
    for (int32_t head = 0; head < c->kv_heads; head++) {
        if (c->packed) commit_packed(c, layer, head);
        else commit_head(c, layer, head);
    }
}

static void commit_thread(void *arg) {
    const struct commit *c = arg;
    int32_t stride = omp_get_num_threads ? omp_get_num_threads() : 1;
    for (int32_t layer = omp_get_thread_num ? omp_get_thread_num() : 0; layer < c->layers; layer += stride)
        commit_layer(c, layer);
}

void thriftree_commit(const struct commit *c) {
    if (c->threads > 1 && GOMP_parallel) GOMP_parallel(commit_thread, (void *)c, (unsigned)c->threads, 0);
    else
        for (int32_t layer = 0; layer < c->layers; layer++) commit_layer(c, layer);
}
