/* Attention probabilities of some query rows, added up by column. Keys are packed once per head; a chunk of rows keeps its
 * scores of all keys in the processor's cache, so that nothing is computed twice and no matrix is written to memory. */
#include "../tree_attention/gemm.h"
#include "turn.h"

#define LOG2E 1.4426950408889634f
enum { CHUNK = 24, TILE = 64 };

/* Kept in step with cpu.py; strides in elements. */
struct sums {
    const void *q, *k;
    const int64_t *pos, *q_pos; /* [heads, rows] contiguous, [queries] */
    float *parts;               /* [threads, heads, tiles * TILE], zero */
    float *scratch;             /* [threads, thriftree_sums_scratch] */
    int64_t q_head, q_group, q_row, k_head, k_row;
    int32_t heads, group, queries, rows, dim, type, threads, tiles;
    float scale;
};

/* A thread's memory. Position of the first and the last key of each tile; `seen` are the tiles that a chunk looks at. */
struct space {
    float *keys, *q, *scores;
    int32_t *pos, *low, *high, *seen;
};

extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

int64_t thriftree_sums_scratch(const struct sums *c) {
    int64_t columns = (int64_t)c->tiles * TILE;
    return columns * c->dim + CHUNK * c->dim + CHUNK * columns + columns + 3 * c->tiles;
}

static struct space space_of(const struct sums *c, float *at) {
    int64_t columns = (int64_t)c->tiles * TILE;
    struct space s = {.keys = at};
    s.scores = s.keys + columns * c->dim;
    s.pos = (int32_t *)(s.scores + CHUNK * columns);
    s.low = s.pos + columns;
    s.high = s.low + c->tiles;
    s.seen = s.high + c->tiles;
    s.q = (float *)(s.seen + c->tiles);
    return s;
}

static int32_t narrow(int64_t x) { return x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : (int32_t)x; }

/* Up to four keys from `from` on become columns of a tile, by fours where there are four. */
INLINE void turn_keys(const struct sums *c, int64_t from, int32_t count, float *keys, const int type) {
    int32_t d = 0;
    if (count == 4 && type == F32)
        for (const float *in = (const float *)c->k + from; d + 4 <= c->dim; d += 4)
            turn4((char *)(keys + d * TILE), 4 * TILE, (const char *)(in + d), 4 * c->k_row);
    else if (count == 4)
        for (float wide[4][LANES]; d + LANES <= c->dim; d += LANES) {
            for (int j = 0; j < 4; j++) store(wide[j], load_as(c->k, from + j * c->k_row + d, type));
            for (int i = 0; i < LANES; i += 4)
                turn4((char *)(keys + (d + i) * TILE), 4 * TILE, (const char *)(wide[0] + i), 4 * LANES);
        }
    for (; d < c->dim; d++)
        for (int32_t j = 0; j < count; j++) keys[d * TILE + j] = scalar_as(c->k, from + j * c->k_row + d, type);
}

INLINE void transpose(const struct sums *c, int32_t head, float *keys, const int type) {
    for (int32_t row = 0; row < c->rows; row += 4) {
        float *to = keys + (int64_t)(row / TILE) * TILE * c->dim + row % TILE;
        int32_t count = c->rows - row < 4 ? c->rows - row : 4;
        turn_keys(c, head * c->k_head + row * c->k_row, count, to, type);
    }
}

/* Keys as [tile][dim][TILE] floats. The columns after the last row are younger than any query: whatever they hold. */
static void pack(const struct sums *c, int32_t head, struct space *s) {
    if (c->type == F32) transpose(c, head, s->keys, F32);
    else if (c->type == BF16) transpose(c, head, s->keys, BF16);
    else transpose(c, head, s->keys, F16);
    for (int32_t j = 0; j < c->tiles * TILE; j++)
        s->pos[j] = j < c->rows ? narrow(c->pos[(int64_t)head * c->rows + j]) : INT32_MAX;
    for (int32_t tile = 0; tile < c->tiles; tile++) {
        const int32_t *pos = s->pos + tile * TILE;
        s->low[tile] = s->high[tile] = pos[0];
        for (int32_t j = 1; j < TILE; j++) {
            if (pos[j] < s->low[tile]) s->low[tile] = pos[j];
            if (pos[j] > s->high[tile]) s->high[tile] = pos[j];
        }
    }
}

INLINE vi splat_int(int32_t x) { return (vi){0} + x; }

/* Scores of a query row in `count` tiles become weights; returns what they must be multiplied with. */
static float soften(const struct space *s, float *x, int32_t count, int32_t at) {
    vf top = splat(-INFINITY), total = splat(0);
    for (int32_t t = 0; t < count; t++) {
        float *row = x + t * TILE;
        const int32_t *pos = s->pos + s->seen[t] * TILE;
        int hide = s->high[s->seen[t]] > at;
        for (int j = 0; j < TILE; j += LANES) {
            vf here = load(row + j);
            if (hide) {
                vi ages;
                memcpy(&ages, pos + j, sizeof ages);
                here = pick((vi)(ages > splat_int(at)), splat(-INFINITY), here);
                store(row + j, here);
            }
            top = vmax(top, here);
        }
    }
    float best = reduce_max(top);
    vf base = splat(best == -INFINITY ? 0 : best);
    for (int32_t j = 0; j < count * TILE; j += LANES) {
        vf weight = exp2_nonpositive(load(x + j) - base);
        store(x + j, weight);
        total += weight;
    }
    return best == -INFINITY ? 0 : 1 / reduce_sum(total);
}

static void take_queries(const struct sums *c, int32_t head, int32_t first, int32_t count, float *q) {
    for (int32_t r = 0; r < count; r++) {
        int32_t w = (first + r) / c->group, g = (first + r) % c->group;
        int64_t from = head * c->q_head + g * c->q_group + w * c->q_row;
        for (int32_t d = 0; d < c->dim; d++)
            q[(int64_t)r * c->dim + d] = scalar_as(c->q, from + d, c->type) * (c->scale * LOG2E);
    }
}

/* Query rows are counted query by query, so that those of a chunk look equally far. */
static void add_chunk(const struct sums *c, int32_t head, int32_t first, struct space *s, float *out) {
    int32_t all = c->queries * c->group, count = all - first < CHUNK ? all - first : CHUNK, seen = 0;
    int64_t newest = c->q_pos[first / c->group];
    for (int32_t r = 1; r < count; r++)
        if (c->q_pos[(first + r) / c->group] > newest) newest = c->q_pos[(first + r) / c->group];
    for (int32_t tile = 0; tile < c->tiles; tile++)
        if (s->low[tile] <= newest && s->low[tile] != INT32_MAX) s->seen[seen++] = tile;
    take_queries(c, head, first, count, s->q);
    int64_t line = (int64_t)seen * TILE;
    for (int32_t t = 0; t < seen; t++) {
        struct ahead none = {0};
        const float *keys = s->keys + (int64_t)s->seen[t] * TILE * c->dim;
        scores_F32(count, s->q, c->dim, keys, TILE, s->scores + t * TILE, line, TILE, &none);
    }
    float factor[CHUNK];
    for (int32_t r = 0; r < count; r++)
        factor[r] = soften(s, s->scores + r * line, seen, narrow(c->q_pos[(first + r) / c->group]));
    for (int32_t t = 0; t < seen; t++)
        for (int j = 0; j < TILE; j += LANES) {
            float *to = out + (int64_t)s->seen[t] * TILE + j;
            vf sum = load(to);
            for (int32_t r = 0; r < count; r++) sum += load(s->scores + r * line + t * TILE + j) * splat(factor[r]);
            store(to, sum);
        }
}

static void sum_share(void *arg) {
    const struct sums *c = arg;
    int64_t all = omp_get_num_threads ? omp_get_num_threads() : 1, mine = omp_get_thread_num ? omp_get_thread_num() : 0;
    int64_t chunks = ((int64_t)c->queries * c->group + CHUNK - 1) / CHUNK, items = c->heads * chunks;
    struct space s = space_of(c, c->scratch + mine * thriftree_sums_scratch(c));
    int32_t packed = -1;
    for (int64_t i = items * mine / all; i < items * (mine + 1) / all; i++) {
        int32_t head = (int32_t)(i / chunks), j = (int32_t)(i % chunks);
        if (head != packed) pack(c, packed = head, &s);
        /* From both ends in turns: early queries see little, and every thread gets a mixture. */
        int64_t chunk = j % 2 ? chunks - 1 - j / 2 : j / 2;
        add_chunk(c, head, (int32_t)(chunk * CHUNK), &s, c->parts + (mine * c->heads + head) * c->tiles * TILE);
    }
}

void thriftree_column_sums(const struct sums *c) {
    if (c->threads > 1 && GOMP_parallel) GOMP_parallel(sum_share, (void *)c, (unsigned)c->threads, 0);
    else sum_share((void *)c);
}
