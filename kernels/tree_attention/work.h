/* What a call is about, and how its work is cut for the threads. */
#pragma once
#include <stdlib.h>
#include "../simd.h"

#define TILE 128         /* most tokens of context taken at once; the scores of CHUNK rows stay in L1 */
#define GRAIN 32         /* tokens at whose multiples a context may be cut */
#define READ_COST 4      /* reading a token's K and V costs as much as this many rows of arithmetic */
#define MIN_PART 1000    /* tokens x rows below which another thread costs more than it saves */
#define MAX_PARTS 512

/* Kept in step with cpu.py. */
struct plan {
    const int32_t *block_table, *row_start, *row_count, *ctx, *depth;
    const uint64_t *ancestors;
    int64_t table_stride, table_width, words;
    int32_t requests, threads;
    int32_t heads, kv_heads, dim, block, type, window, packed;
    float scale, softcap;
    int64_t q_row, q_head, k_row, k_head, v_row, v_head, o_row, o_head;
    int64_t kc_block, kc_head, vc_block, vc_head;
};

/* A place in the work: an item is a (request, KV head), a unit a grain of its context or a tile of its own rows. */
struct cut { int64_t item; int32_t unit; };

struct call {
    const struct plan *plan;
    const char *q, *k, *v, *kc, *vc;
    char *out;
    const float *sinks, *slopes;
    float *slots;
    int64_t slot_size;
    int32_t parts, max_rows, elem;
    struct cut cuts[MAX_PARTS + 1];
    int32_t done[MAX_PARTS];
};

/* One request: `m` rows x heads of a group; its context from `lo` on in grains, then its own rows. */
struct shape { int64_t r; int32_t rows, m, lo, ctx, grains, units; };

/* The tokens taken at once from a unit on: of the context, or of the request's own rows. */
struct span { int32_t prefix, from, count, next; };

static int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }
static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

static struct shape shape_of(const struct plan *p, int64_t r) {
    struct shape s = {.r = r, .rows = p->row_count[r], .ctx = p->ctx[r]};
    s.m = s.rows * (p->heads / p->kv_heads);
    if (p->window > 0 && s.ctx >= p->window) s.lo = (s.ctx - p->window + 1) / GRAIN * GRAIN;
    s.grains = ceil_div(s.ctx - s.lo, GRAIN);
    s.units = s.rows ? s.grains + ceil_div(s.rows, TILE) : 0;
    return s;
}

/* Tiles end at multiples of TILE, where blocks end too, or at a cut. */
static struct span span_of(const struct shape *s, int32_t unit, int32_t end) {
    struct span x = {.prefix = unit < s->grains};
    if (!x.prefix) {
        x.from = (unit - s->grains) * TILE;
        x.count = least(s->rows - x.from, TILE);
        x.next = unit + 1;
        return x;
    }
    x.from = s->lo + unit * GRAIN;
    int32_t stop = least((x.from / TILE + 1) * TILE, s->lo + least(end, s->grains) * GRAIN);
    x.count = least(stop, s->ctx) - x.from;
    x.next = unit + ceil_div(x.count, GRAIN);
    return x;
}

static int64_t token_cost(const struct shape *s) { return s->m + READ_COST; }
static int64_t item_cost(const struct shape *s) { return s->rows ? token_cost(s) * (s->ctx - s->lo + s->rows) : 0; }

/* The unit nearest to a number of tokens into an item. */
static int32_t unit_at(const struct shape *s, int32_t token) {
    int32_t prefix = s->ctx - s->lo;
    if (token < prefix) return least((token + GRAIN / 2) / GRAIN, s->grains);
    return s->grains + (token - prefix + TILE / 2) / TILE;
}

/* Cut all items, one after the other, into parts of equal cost. Returns -1 if a context exceeds its block table. */
static int cut_work(struct call *c) {
    const struct plan *p = c->plan;
    int64_t total = 0, before = 0, cost = 0, r = -1;
    struct shape s = {0};
    c->max_rows = 0;
    for (int64_t i = 0; i < p->requests; i++) {
        s = shape_of(p, i);
        if (s.rows && s.ctx > p->table_width * p->block) return -1;
        total += item_cost(&s) * p->kv_heads;
        if (s.m > c->max_rows) c->max_rows = s.m;
    }
    c->parts = (int32_t)(total / MIN_PART < p->threads ? total / MIN_PART + 1 : p->threads);
    c->parts = least(c->parts, MAX_PARTS);
    c->cuts[0] = (struct cut){0, 0};
    for (int32_t part = 1; part < c->parts; part++) {
        int64_t target = total * part / c->parts;
        while (r < 0 || before + cost * p->kv_heads <= target) {
            before += cost * p->kv_heads;
            s = shape_of(p, ++r);
            cost = item_cost(&s);
        }
        int64_t head = (target - before) / cost, item = r * p->kv_heads + head;
        int32_t unit = unit_at(&s, (int32_t)((target - before - head * cost) / token_cost(&s)));
        c->cuts[part] = unit >= s.units ? (struct cut){item + 1, 0} : (struct cut){item, unit};
    }
    c->cuts[c->parts] = (struct cut){(int64_t)p->requests * p->kv_heads, 0};
    return 0;
}

static int before_cut(struct cut a, struct cut b) { return a.item != b.item ? a.item < b.item : a.unit < b.unit; }

/* Grow-only memory per thread: no allocation and no page faults in the steady state. */
struct memory { float *at; size_t size; };

static float *grow(struct memory *memory, size_t floats) {
    if (memory->size < floats) {
        free(memory->at);
        memory->size = floats + floats / 2;
        if (posix_memalign((void **)&memory->at, 64, memory->size * sizeof(float))) abort();
    }
    return memory->at;
}
