/* Tree attention over a paged KV cache, and the commit of accepted rows.
 *
 * A request's rows (root and draft nodes) times the query heads of one KV head form a small matrix. For every tile of
 * the context it is multiplied with K, soft-maxed online and multiplied with V, so the cache is read once per KV head
 * whatever the number of rows. The request's own rows are one more tile at the end, under the ancestor mask.
 * Work = the tiles of all (request, KV head) items in a row, cut into one equal range per thread; the thread that
 * finishes a cut item last adds its parts up, in order, so results do not depend on timing.
 */
#include <stdlib.h>
#include "gemm.h"

#define LOG2E 1.4426950408889634f
#define TILE 128           /* tokens of context per step; scores of CHUNK rows stay in L1 */
#define S_ROW (TILE + 16)
#define CHUNK 24
#define COPY_ROWS 18       /* from here on a 16-bit tile is made float once, not once per block of rows */
#define NOTHING (-1e30f)   /* running maximum before anything was seen; finite, so that differences stay finite */
#define TILE_READ_COST 4   /* reading a token's K and V costs as much as this many rows of arithmetic */
#define MIN_PART 1000      /* tokens x rows below which another thread costs more than it saves */
#define MAX_PARTS 512

/* Kept in step with cpu.py. */
struct plan {
    const int32_t *block_table, *row_start, *row_count, *ctx, *depth;
    const uint64_t *ancestors;
    int64_t table_stride, words;
    int32_t requests, threads;
    int32_t heads, kv_heads, dim, block, type, window, packed;
    float scale, softcap;
    int64_t q_row, q_head, k_row, k_head, v_row, v_head, o_row, o_head;
    int64_t kc_block, kc_head, vc_block, vc_head;
};

struct cut { int64_t item; int32_t tile; };

struct call {
    const struct plan *plan;
    const char *q, *k, *v, *kc, *vc;
    char *out;
    const float *sinks, *slopes;
    float *slots;
    int64_t slot_size;
    int32_t parts, tile, max_rows, elem;
    struct cut cuts[MAX_PARTS + 1];
    int32_t done[MAX_PARTS];
};

/* One request as the tiles see it. */
struct shape { int32_t rows, m, lo, ctx, prefix_tiles, tiles; };

/* Some tokens' K and V: the cache's or the step's own memory, or a float copy in scratch. */
struct piece { const void *k, *v; ptrdiff_t k_row, v_row; int32_t col, cols, valid, k_type, v_type; };

extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

static int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

static struct shape shape_of(const struct plan *p, int64_t r, int32_t tile) {
    struct shape s;
    s.rows = p->row_count[r];
    s.m = s.rows * (p->heads / p->kv_heads);
    s.ctx = p->ctx[r];
    s.lo = p->window > 0 && s.ctx >= p->window ? (s.ctx - p->window + 1) & ~31 : 0;
    s.prefix_tiles = ceil_div(s.ctx - s.lo, tile);
    s.tiles = s.rows ? s.prefix_tiles + ceil_div(s.rows, tile) : 0;
    return s;
}

static int64_t token_cost(const struct shape *s) { return s->m + TILE_READ_COST; }
static int64_t item_cost(const struct shape *s) { return s->rows ? token_cost(s) * (s->ctx - s->lo + s->rows) : 0; }

/* Cut all items into `parts` ranges of equal cost at tile boundaries. */
static void cut_work(struct call *c) {
    const struct plan *p = c->plan;
    int64_t total = 0, tokens = 0, before = 0, cost = 0, r = -1;
    struct shape s = {0};
    c->max_rows = 0;
    for (int64_t i = 0; i < p->requests; i++) {
        s = shape_of(p, i, TILE);
        total += item_cost(&s) * p->kv_heads;
        tokens += s.ctx - s.lo;
        if (s.m > c->max_rows) c->max_rows = s.m;
    }
    tokens *= p->kv_heads;
    int64_t parts = total / MIN_PART + 1;
    c->parts = (int32_t)(parts < p->threads ? parts : p->threads);
    if (c->parts > MAX_PARTS) c->parts = MAX_PARTS;
    c->tile = tokens >= (int64_t)c->parts * 4 * TILE ? TILE : tokens >= (int64_t)c->parts * 2 * TILE ? TILE / 2 : TILE / 4;
    if (c->parts == 1) c->tile = TILE;
    c->cuts[0] = (struct cut){0, 0};
    for (int32_t part = 1; part < c->parts; part++) {
        int64_t target = total * part / c->parts;
        while (r < 0 || before + cost * p->kv_heads <= target) {
            before += cost * p->kv_heads;
            s = shape_of(p, ++r, c->tile);
            cost = item_cost(&s);
        }
        int64_t head = (target - before) / cost, token = (target - before - head * cost) / token_cost(&s);
        int32_t prefix = s.ctx - s.lo, tile;
        if (token < prefix) tile = ((int32_t)token + c->tile / 2) / c->tile;
        else tile = s.prefix_tiles + ((int32_t)token - prefix + c->tile / 2) / c->tile;
        if (tile > s.prefix_tiles && token < prefix) tile = s.prefix_tiles;
        c->cuts[part] = tile >= s.tiles ? (struct cut){r * p->kv_heads + head + 1, 0}
                                        : (struct cut){r * p->kv_heads + head, tile};
    }
    c->cuts[c->parts] = (struct cut){(int64_t)p->requests * p->kv_heads, 0};
}

static int before_cut(struct cut a, struct cut b) { return a.item != b.item ? a.item < b.item : a.tile < b.tile; }

/* Grow-only scratch, one per thread: no allocation and no page faults in the steady state. */
static float *scratch(size_t floats) {
    static __thread float *memory;
    static __thread size_t size;
    if (size < floats) {
        free(memory);
        size = floats + floats / 2;
        if (posix_memalign((void **)&memory, 64, size * sizeof(float))) abort();
    }
    return memory;
}

static float *slot_memory(size_t floats) {
    static __thread float *memory;
    static __thread size_t size;
    if (size < floats) {
        free(memory);
        size = floats + floats / 2;
        if (posix_memalign((void **)&memory, 64, size * sizeof(float))) abort();
    }
    return memory;
}

/* ---- one tile ---- */

/* A piece of a cache in AMX layout (bfloat16) as floats: keys [token / 16][dim / 2][16][2] become [dim, token], values
 * [dim / 16][token / 2][16][2] become [token, dim]. A 32-bit word holds two neighbours, the even one in the low half. */
static void unpack(const struct plan *p, const char *k, const char *v, int32_t offset, int32_t valid, float *kt,
                   float *vt) {
    for (int32_t t = 0; t < valid; t += 16)
        for (int d = 0; d < p->dim; d += 2)
            for (int j = 0; j < 16; j += LANES) {
                vu word = *(const vu_any *)(k + ((offset + t) * (ptrdiff_t)p->dim + d * 16 + j * 2) * 2);
                store(kt + (ptrdiff_t)d * TILE + t + j, (vf)(word << 16));
                store(kt + (ptrdiff_t)(d + 1) * TILE + t + j, (vf)(word & 0xffff0000u));
            }
    for (int32_t t = 0; t < valid; t += 2)
        for (int d = 0; d < p->dim; d += 16)
            for (int j = 0; j < 16; j += LANES) {
                vu word = *(const vu_any *)(v + (d * (ptrdiff_t)p->block + (offset + t) * 16 + j * 2) * 2);
                store(vt + (ptrdiff_t)t * p->dim + d + j, (vf)(word << 16));
                store(vt + (ptrdiff_t)(t + 1) * p->dim + d + j, (vf)(word & 0xffff0000u));
            }
}

/* Pieces of the cache under tokens [from, from + count): cut at block borders. */
INLINE int cache_pieces(const struct call *c, int64_t r, int64_t h, int32_t from, int32_t count, float *kt, float *vt,
                        struct piece *out, int copy, const int type) {
    const struct plan *p = c->plan;
    const int32_t *table = p->block_table + r * p->table_stride;
    int n = 0;
    for (int32_t col = 0; col < count; n++) {
        int32_t at = from + col, offset = at % p->block, left = p->block - offset;
        int64_t block = table[at / p->block];
        int32_t valid = count - col < left ? count - col : left;
        int32_t cols = (valid + LANES - 1) / LANES * LANES;
        const char *k = c->kc + (block * p->kc_block + h * p->kc_head) * c->elem;
        const char *v = c->vc + (block * p->vc_block + h * p->vc_head) * c->elem;
        if (p->packed) {
            unpack(p, k, v, offset, valid, kt + col, vt + (ptrdiff_t)col * p->dim);
            col += valid;
            continue;
        }
        k += (ptrdiff_t)offset * c->elem;
        v += (ptrdiff_t)offset * p->dim * c->elem;
        if (!copy) {
            out[n] = (struct piece){k, v, p->block, p->dim, col, cols, valid, type, type};
        } else {
            for (int d = 0; d < p->dim; d++)
                for (int j = 0; j < cols; j += LANES)
                    store(kt + (ptrdiff_t)d * TILE + col + j, load_as(k, (ptrdiff_t)d * p->block + j, type));
            for (ptrdiff_t i = 0; i < (ptrdiff_t)valid * p->dim; i += LANES)
                store(vt + (ptrdiff_t)col * p->dim + i, load_as(v, i, type));
        }
        col += valid;
    }
    if (!copy) return n;
    out[0] = (struct piece){kt, vt, TILE, p->dim, 0, (count + LANES - 1) / LANES * LANES, count, F32, F32};
    return 1;
}

/* The request's own rows [from, from + count) as a piece: K transposed, V as it lies. */
INLINE int step_piece(const struct call *c, int64_t first, int64_t h, int32_t count, float *kt, struct piece *out,
                      const int type) {
    const struct plan *p = c->plan;
    int32_t cols = (count + LANES - 1) / LANES * LANES;
    const char *k = c->k + (first * p->k_row + h * p->k_head) * c->elem;
    const char *v = c->v + (first * p->v_row + h * p->v_head) * c->elem;
    for (int32_t j = 0; j < count; j++) /* the columns up to `cols` keep whatever was there: they are hidden */
        for (int d = 0; d < p->dim; d++) kt[(ptrdiff_t)d * TILE + j] = scalar_as(k, j * p->k_row + d, type);
    *out = (struct piece){kt, v, TILE, p->v_row, 0, cols, count, F32, type};
    return 1;
}

static void cap_scores(float *s, int n, float cap) {
    for (int j = 0; j < n; j += LANES) store(s + j, tanh_any(load(s + j)) * splat(cap * LOG2E));
}

static void hide(float *s, int from, int to) {
    for (int j = from; j < to; j++) s[j] = -INFINITY;
}

/* The running maximum `m` of a row takes in its scores; returns how far it moved (<= 0). */
INLINE float raise(const float *s, int n, float *m) {
    vf top = load(s);
    for (int j = LANES; j < n; j += LANES) top = vmax(top, load(s + j));
    float old = *m, now = reduce_max(top);
    *m = now > old ? now : old;
    return old - *m;
}

/* Online softmax of one row: scores become weights, `l` keeps their sum by lane, `factor` weighs down what it held. */
INLINE void soften(float *s, int n, float m, float *l, float factor) {
    vf sum = load(l) * splat(factor), base = splat(m);
    for (int j = 0; j < n; j += LANES) {
        vf w = exp2_nonpositive(load(s + j) - base);
        store(s + j, w);
        sum += w;
    }
    store(l, sum);
}

struct rows { float *q, *o, *m, *l; };

/* Softcap, position bias and masks of one row of scores against one tile. */
static void mask_row(const struct call *c, const struct shape *s, int64_t row, int32_t head, int prefix, int32_t from,
                     int32_t count, int32_t cols, float *x) {
    const struct plan *p = c->plan;
    if (p->softcap > 0) cap_scores(x, cols, p->softcap);
    int32_t depth = p->depth[row];
    if (c->slopes && prefix) {
        vf slope = splat(c->slopes[head] * LOG2E), at = splat((float)(from - s->ctx - depth)) + lane_index();
        for (int j = 0; j < cols; j += LANES) store(x + j, load(x + j) + slope * (at + splat((float)j)));
    }
    if (prefix && p->window > 0) {
        int32_t seen = s->ctx + depth - p->window + 1 - from;
        hide(x, 0, seen < 0 ? 0 : seen < count ? seen : count);
    }
    hide(x, count, cols);
}

static void mask_tree(const struct call *c, int64_t start, int64_t row, int32_t head, int32_t from, int32_t count,
                      float *x) {
    const struct plan *p = c->plan;
    const uint64_t *bits = p->ancestors + row * p->words;
    const int32_t *depth = p->depth + start + from;
    int32_t mine = p->depth[row];
    for (int32_t j = 0; j < count; j++) {
        int32_t at = from + j;
        int seen = at < p->words * 64 && (bits[at >> 6] >> (at & 63) & 1);
        if (p->window > 0 && mine - depth[j] >= p->window) seen = 0;
        if (c->slopes) x[j] += c->slopes[head] * LOG2E * (float)(depth[j] - mine);
        x[j] = seen ? x[j] : -INFINITY;
    }
}

/* Scores of a piece; its V is on the way meanwhile, since nothing else announces it. */
static void scores(int m, const float *q, int dim, const struct piece *x, float *s, int first) {
    int64_t bytes = (int64_t)x->valid * x->v_row * (x->v_type == F32 ? 4 : 2);
    struct ahead ahead = {x->v, 0};
    if (first && x->k_type == x->v_type) {
        int steps = dim * ((x->cols + VECTORS(m < MAX_ROWS ? m : MAX_ROWS) * LANES - 1) / (VECTORS(m < MAX_ROWS ? m : MAX_ROWS) * LANES));
        ahead.lines = (int)((bytes / 64 + steps - 1) / steps);
    }
    s += x->col;
    if (x->k_type == F32) scores_F32(m, q, dim, x->k, x->k_row, s, S_ROW, x->cols, &ahead);
    else if (x->k_type == BF16) scores_BF16(m, q, dim, x->k, x->k_row, s, S_ROW, x->cols, &ahead);
    else scores_F16(m, q, dim, x->k, x->k_row, s, S_ROW, x->cols, &ahead);
}

/* Add a piece's weighted values from token `cut` on; `next` is the following K. */
static void values(int m, const float *w, const struct piece *x, int cut, float *o, int dim, const float *factor,
                   const char *next) {
    struct ahead ahead = {next, next ? (x->v_type == F32 ? 4 : 2) : 0};
    const void *v = at(x->v, cut * x->v_row, x->v_type);
    w += x->col + cut;
    if (x->v_type == F32) values_F32(m, w, S_ROW, x->valid - cut, v, x->v_row, o, dim, factor, &ahead);
    else if (x->v_type == BF16) values_BF16(m, w, S_ROW, x->valid - cut, v, x->v_row, o, dim, factor, &ahead);
    else values_F16(m, w, S_ROW, x->valid - cut, v, x->v_row, o, dim, factor, &ahead);
}

INLINE void attend_tile(const struct call *c, const struct shape *s, int64_t r, int64_t h, int32_t tile, struct rows x,
                        float *sc, float *kt, float *vt, const int type) {
    const struct plan *p = c->plan;
    struct piece pieces[TILE / 16 + 1];
    int64_t start = p->row_start[r];
    int32_t group = p->heads / p->kv_heads, prefix = tile < s->prefix_tiles, from, count, skip = 0;
    int n;
    if (prefix) {
        from = s->lo + tile * c->tile;
        count = s->ctx - from < c->tile ? s->ctx - from : c->tile;
        if (p->window > 0) skip = s->ctx - p->window + 1 - from; /* no row sees these, and they may hold anything */
        n = cache_pieces(c, r, h, from, count, kt, vt, pieces, p->packed || (type != F32 && s->m > COPY_ROWS), type);
    } else {
        from = (tile - s->prefix_tiles) * c->tile;
        count = s->rows - from < c->tile ? s->rows - from : c->tile;
        n = step_piece(c, start + from, h, count, kt, pieces, type);
    }
    int32_t cols = pieces[n - 1].col + pieces[n - 1].cols;
    float alpha[CHUNK + LANES];
    const char *next = NULL;
    if (prefix && tile + 1 < s->prefix_tiles && !p->packed) {
        int32_t to = from + c->tile;
        int64_t block = p->block_table[r * p->table_stride + to / p->block];
        next = c->kc + (block * p->kc_block + h * p->kc_head + to % p->block) * c->elem;
    }
    for (int32_t m0 = 0; m0 < s->m; m0 += CHUNK) {
        int32_t m = s->m - m0 < CHUNK ? s->m - m0 : CHUNK;
        for (int i = 0; i < n; i++) scores(m, x.q + (ptrdiff_t)m0 * p->dim, p->dim, pieces + i, sc, m0 == 0);
        for (int32_t i = 0; i < m; i++) {
            int32_t row = (m0 + i) / group, head = (int32_t)h * group + (m0 + i) % group;
            float *line = sc + i * S_ROW;
            mask_row(c, s, start + row, head, prefix, from, count, cols, line);
            if (!prefix) mask_tree(c, start, start + row, head, from, count, line);
            alpha[i] = raise(line, cols, x.m + m0 + i);
        }
        for (int32_t i = 0; i < m; i += LANES) store(alpha + i, exp2_nonpositive(load(alpha + i)));
        for (int32_t i = 0; i < m; i++)
            soften(sc + i * S_ROW, cols, x.m[m0 + i], x.l + (ptrdiff_t)(m0 + i) * LANES, alpha[i]);
        const float *factor = alpha;
        for (int i = 0; i < n; i++) {
            int32_t cut = skip - pieces[i].col;
            cut = cut < 0 ? 0 : cut < pieces[i].valid ? cut : pieces[i].valid;
            values(m, sc, pieces + i, cut, x.o + (ptrdiff_t)m0 * p->dim, p->dim, factor, m0 == 0 ? next : NULL);
            factor = NULL;
        }
    }
}

/* ---- one item, whole or in parts ---- */

INLINE void load_queries(const struct call *c, int64_t start, int64_t h, int32_t rows, float *q, const int type) {
    const struct plan *p = c->plan;
    int32_t group = p->heads / p->kv_heads;
    vf scale = splat(p->softcap > 0 ? p->scale / p->softcap : p->scale * LOG2E);
    for (int32_t i = 0; i < rows; i++)
        for (int32_t g = 0; g < group; g++, q += p->dim)
            for (int d = 0; d < p->dim; d += LANES)
                store(q + d, load_as(c->q, (start + i) * p->q_row + (h * group + g) * p->q_head + d, type) * scale);
}

/* Divide by the sum of weights and write the output's rows. */
INLINE void write_row(const struct call *c, int64_t start, int64_t h, int32_t i, const float *o, float m, float l,
                      const int type) {
    const struct plan *p = c->plan;
    int32_t group = p->heads / p->kv_heads, head = (int32_t)h * group + i % group;
    if (c->sinks) {
        float sink = c->sinks[head] * LOG2E, top = sink > m ? sink : m, f = exp2_scalar(m - top);
        float share = f / (l * f + exp2_scalar(sink - top));
        l = share > 0 ? 1 / share : 0;
    }
    vf inverse = splat(l > 0 ? 1 / l : 0);
    for (int d = 0; d < p->dim; d += LANES)
        store_as(c->out, (start + i / group) * p->o_row + head * p->o_head + d, load(o + d) * inverse, type);
}

static float *slot(const struct call *c, int32_t part, int opens) { return c->slots + (2 * part + opens) * c->slot_size; }

/* Sum the parts of a cut item in order: o, m, l of each part lie in its slot. */
INLINE void join(const struct call *c, const struct shape *s, int64_t r, int64_t h, int32_t first, int32_t last,
                 const int type) {
    const struct plan *p = c->plan;
    float *o = scratch(p->dim);
    for (int32_t i = 0; i < s->m; i++) {
        float m = NOTHING, l = 0;
        for (int pass = 0; pass < 2; pass++) {
            if (pass) memset(o, 0, p->dim * sizeof(float));
            for (int32_t part = first; part <= last; part++) {
                if (!before_cut(c->cuts[part], c->cuts[part + 1])) continue;
                const float *from = slot(c, part, part == first), *ms = from + (ptrdiff_t)s->m * p->dim;
                if (!pass) {
                    m = ms[i] > m ? ms[i] : m;
                    continue;
                }
                float w = exp2_scalar(ms[i] - m);
                l += w * ms[s->m + i];
                for (int d = 0; d < p->dim; d += LANES)
                    store(o + d, load(o + d) + splat(w) * load(from + (ptrdiff_t)i * p->dim + d));
            }
        }
        write_row(c, p->row_start[r], h, i, o, m, l, type);
    }
}

INLINE void attend_item(struct call *c, int32_t part, int64_t item, const int type) {
    const struct plan *p = c->plan;
    int64_t r = item / p->kv_heads, h = item % p->kv_heads;
    struct shape s = shape_of(p, r, c->tile);
    struct cut begin = {item, 0}, end = {item + 1, 0};
    int32_t a = c->cuts[part].item == item ? c->cuts[part].tile : 0;
    int32_t e = c->cuts[part + 1].item == item ? c->cuts[part + 1].tile : s.tiles;
    if (a >= e) return;
    size_t wide = (size_t)s.m * p->dim, tile = (size_t)TILE * p->dim;
    float *base = scratch(2 * wide + s.m * (LANES + 1) + CHUNK * S_ROW + 2 * tile + 64);
    int whole = a == 0 && e == s.tiles;
    float *kt = base, *vt = kt + tile, *sc = vt + tile;
    struct rows x = {.q = sc + CHUNK * S_ROW};
    x.l = x.q + wide;
    x.o = whole ? x.l + (size_t)s.m * LANES : slot(c, part, a == 0);
    x.m = x.o + wide; /* in a slot the sums follow the maxima */
    load_queries(c, p->row_start[r], h, s.rows, x.q, type);
    memset(x.o, 0, wide * sizeof(float));
    memset(x.l, 0, (size_t)s.m * LANES * sizeof(float));
    for (int32_t i = 0; i < s.m; i++) x.m[i] = NOTHING;
    for (int32_t t = a; t < e; t++) attend_tile(c, &s, r, h, t, x, sc, kt, vt, type);
    if (whole) {
        for (int32_t i = 0; i < s.m; i++)
            write_row(c, p->row_start[r], h, i, x.o + (size_t)i * p->dim, x.m[i], reduce_sum(load(x.l + i * LANES)), type);
        return;
    }
    for (int32_t i = 0; i < s.m; i++) x.m[s.m + i] = reduce_sum(load(x.l + i * LANES));
    int32_t first = part, last = part, pieces = 0;
    while (before_cut(begin, c->cuts[first])) first--;
    while (before_cut(c->cuts[last + 1], end)) last++;
    for (int32_t i = first; i <= last; i++) pieces += before_cut(c->cuts[i], c->cuts[i + 1]);
    if (__atomic_add_fetch(&c->done[first], 1, __ATOMIC_ACQ_REL) == pieces) join(c, &s, r, h, first, last, type);
}

static void attend_part(struct call *c, int32_t part) {
    int64_t last = c->cuts[part + 1].item, items = (int64_t)c->plan->requests * c->plan->kv_heads;
    for (int64_t item = c->cuts[part].item; item <= last && item < items; item++) {
        if (c->plan->type == F32) attend_item(c, part, item, F32);
        else if (c->plan->type == BF16) attend_item(c, part, item, BF16);
        else attend_item(c, part, item, F16);
    }
}

static void attend_thread(void *arg) {
    struct call *c = arg;
    int32_t stride = omp_get_num_threads ? omp_get_num_threads() : 1;
    for (int32_t part = omp_get_thread_num ? omp_get_thread_num() : 0; part < c->parts; part += stride) attend_part(c, part);
}

int thriftree_attend(const struct plan *p, const void *q, const void *k, const void *v, const void *kc, const void *vc,
                     void *out, const float *sinks, const float *slopes) {
    struct call c;
    c.plan = p, c.q = q, c.k = k, c.v = v, c.kc = kc, c.vc = vc, c.out = out, c.sinks = sinks, c.slopes = slopes;
    c.elem = p->type == F32 ? 4 : 2;
    cut_work(&c);
    if (c.max_rows == 0) return 0;
    memset(c.done, 0, c.parts * sizeof(int32_t));
    c.slot_size = ((int64_t)c.max_rows * (p->dim + 2) + 15) / 16 * 16;
    c.slots = c.parts > 1 ? slot_memory((size_t)c.slot_size * 2 * c.parts) : NULL;
    if (c.parts > 1 && GOMP_parallel) GOMP_parallel(attend_thread, &c, (unsigned)c.parts, 0);
    else for (int32_t part = 0; part < c.parts; part++) attend_part(&c, part);
    return 0;
}

int thriftree_lanes(void) { return LANES; }
int thriftree_parallel(void) { return GOMP_parallel && omp_get_thread_num && omp_get_num_threads; }
