/* One tile of the context against a request's rows: scores, masks, online softmax, values. */
#pragma once
#include "gemm.h"
#include "work.h"

#define LOG2E 1.4426950408889634f
#define S_ROW (TILE + 16)
#define CHUNK 24
#define COPY_ROWS 18     /* above it a 16-bit tile is made float once, not once per block of rows */

/* Some tokens' K and V: the cache's or the step's own memory, or a float copy in scratch. */
struct piece { const void *k, *v; ptrdiff_t k_row, v_row; int32_t col, cols, valid, k_type, v_type; };

/* Scratch of a thread: queries, output, running maxima and sums of all rows; scores of a chunk; a tile of K and V. */
struct space { float *q, *o, *m, *l, *scores, *kt, *vt; };

/* The cache under the tile after this one. */
struct hint { const char *k, *v; int32_t count; };

static int32_t to_lanes(int32_t n) { return (n + LANES - 1) / LANES * LANES; }

static int copies(const struct plan *p, const struct shape *s) { return p->packed || (p->type != F32 && s->m > COPY_ROWS); }

static const char *block_of(const struct call *c, const struct shape *s, int64_t h, int32_t at, int keys) {
    const struct plan *p = c->plan;
    int64_t block = p->block_table[s->r * p->table_stride + at / p->block];
    if (keys) return c->kc + (block * p->kc_block + h * p->kc_head) * c->elem;
    return c->vc + (block * p->vc_block + h * p->vc_head) * c->elem;
}

static struct hint hint_of(const struct call *c, const struct shape *s, int64_t h, struct span x) {
    int32_t offset = x.from % c->plan->block;
    if (!x.prefix || c->plan->packed) return (struct hint){0};
    return (struct hint){block_of(c, s, h, x.from, 1) + offset * c->elem,
                         block_of(c, s, h, x.from, 0) + (int64_t)offset * c->plan->dim * c->elem,
                         least(x.count, c->plan->block - offset)};
}

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

INLINE void widen(const struct plan *p, const struct piece *x, float *kt, float *vt, const int type) {
    for (int d = 0; d < p->dim; d++)
        for (int j = 0; j < x->cols; j += LANES)
            store(kt + (ptrdiff_t)d * TILE + x->col + j, load_as(x->k, (ptrdiff_t)d * p->block + j, type));
    for (ptrdiff_t i = 0; i < (ptrdiff_t)x->valid * p->dim; i += LANES)
        store(vt + (ptrdiff_t)x->col * p->dim + i, load_as(x->v, i, type));
}

/* Pieces of the cache under a span: cut at block borders, or one copy. */
INLINE int cache_pieces(const struct call *c, const struct shape *s, int64_t h, struct span x, const struct space *mem,
                        struct piece *out, const int type) {
    const struct plan *p = c->plan;
    int n = 0, copy = copies(p, s);
    for (int32_t col = 0; col < x.count; n++) {
        int32_t at = x.from + col, offset = at % p->block, valid = least(x.count - col, p->block - offset);
        const char *k = block_of(c, s, h, at, 1), *v = block_of(c, s, h, at, 0);
        if (p->packed) {
            unpack(p, k, v, offset, valid, mem->kt + col, mem->vt + (ptrdiff_t)col * p->dim);
        } else {
            k += (ptrdiff_t)offset * c->elem;
            v += (ptrdiff_t)offset * p->dim * c->elem;
            out[n] = (struct piece){k, v, p->block, p->dim, col, to_lanes(valid), valid, type, type};
            if (copy) widen(p, out + n, mem->kt, mem->vt, type);
        }
        col += valid;
    }
    if (!copy) return n;
    out[0] = (struct piece){mem->kt, mem->vt, TILE, p->dim, 0, to_lanes(x.count), x.count, F32, F32};
    return 1;
}

/* The request's own rows as a piece: K transposed, V as it lies. */
INLINE int step_piece(const struct call *c, int64_t first, int64_t h, int32_t count, float *kt, struct piece *out,
                      const int type) {
    const struct plan *p = c->plan;
    const char *k = c->k + (first * p->k_row + h * p->k_head) * c->elem;
    const char *v = c->v + (first * p->v_row + h * p->v_head) * c->elem;
    for (int32_t j = 0; j < count; j++) /* the columns up to `cols` keep whatever was there: they are hidden */
        for (int d = 0; d < p->dim; d++) kt[(ptrdiff_t)d * TILE + j] = scalar_as(k, j * p->k_row + d, type);
    *out = (struct piece){kt, v, TILE, p->v_row, 0, to_lanes(count), count, F32, type};
    return 1;
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

static void hide(float *s, int from, int to) {
    for (int j = from; j < to; j++) s[j] = -INFINITY;
}

/* Softcap, position bias and window of one row of scores against a span of the context. */
static void mask_context(const struct call *c, const struct shape *s, int64_t row, float slope, struct span t, float *x) {
    const struct plan *p = c->plan;
    int32_t past = t.from - s->ctx - p->depth[row];
    if (slope != 0)
        for (int j = 0; j < t.count; j += LANES)
            store(x + j, load(x + j) + splat(slope) * (splat((float)(past + j)) + lane_index()));
    if (p->window > 0) {
        int32_t unseen = 1 - p->window - past;
        hide(x, 0, unseen < 0 ? 0 : least(unseen, t.count));
    }
}

/* The same against the request's own rows: ancestors only. */
static void mask_tree(const struct call *c, int64_t start, int64_t row, float slope, struct span t, float *x) {
    const struct plan *p = c->plan;
    const uint64_t *bits = p->ancestors + row * p->words;
    const int32_t *depth = p->depth + start + t.from;
    int32_t mine = p->depth[row];
    for (int32_t j = 0; j < t.count; j++) {
        int32_t at = t.from + j;
        int seen = at < p->words * 64 && (bits[at >> 6] >> (at & 63) & 1);
        if (p->window > 0 && mine - depth[j] >= p->window) seen = 0;
        x[j] = seen ? x[j] + slope * (float)(depth[j] - mine) : -INFINITY;
    }
}

static void mask_row(const struct call *c, const struct shape *s, int64_t h, int32_t i, struct span t, int32_t cols,
                     float *x) {
    const struct plan *p = c->plan;
    int32_t group = p->heads / p->kv_heads;
    int64_t start = p->row_start[s->r], row = start + i / group;
    float slope = c->slopes ? c->slopes[h * group + i % group] * LOG2E : 0;
    if (p->softcap > 0)
        for (int j = 0; j < cols; j += LANES) store(x + j, tanh_any(load(x + j)) * splat(p->softcap * LOG2E));
    if (t.prefix) mask_context(c, s, row, slope, t, x);
    else mask_tree(c, start, row, slope, t, x);
    hide(x, t.count, cols);
}

/* Prefetch `tokens` rows of V, as they lie, within so many steps. */
static struct ahead linear(const char *v, int64_t bytes, int steps) {
    int lines = (int)((bytes / 64 + steps - 1) / steps);
    return (struct ahead){v, 64 * lines, lines, steps};
}

static void scores(int m, const float *q, int dim, const struct piece *x, float *s, struct ahead ahead) {
    s += x->col;
    if (x->k_type == F32) scores_F32(m, q, dim, x->k, x->k_row, s, S_ROW, x->cols, &ahead);
    else if (x->k_type == BF16) scores_BF16(m, q, dim, x->k, x->k_row, s, S_ROW, x->cols, &ahead);
    else scores_F16(m, q, dim, x->k, x->k_row, s, S_ROW, x->cols, &ahead);
}

/* Add a piece's weighted values from token `cut` on. */
static void values(int m, const float *w, const struct piece *x, int cut, float *o, int dim, const float *factor,
                   struct ahead ahead) {
    const void *v = at(x->v, cut * x->v_row, x->v_type);
    w += x->col + cut;
    if (x->v_type == F32) values_F32(m, w, S_ROW, x->valid - cut, v, x->v_row, o, dim, factor, &ahead);
    else if (x->v_type == BF16) values_BF16(m, w, S_ROW, x->valid - cut, v, x->v_row, o, dim, factor, &ahead);
    else values_F16(m, w, S_ROW, x->valid - cut, v, x->v_row, o, dim, factor, &ahead);
}

/* Scores to weights: mask, move the maxima, scale what was summed before (`alpha`), take the exponential. */
static void weigh(const struct call *c, const struct shape *s, int64_t h, struct span t, int32_t cols, int32_t m0,
                  int32_t m, const struct space *mem, float *alpha) {
    for (int32_t i = 0; i < m; i++) {
        mask_row(c, s, h, m0 + i, t, cols, mem->scores + i * S_ROW);
        alpha[i] = raise(mem->scores + i * S_ROW, cols, mem->m + m0 + i);
    }
    for (int32_t i = m; i < to_lanes(m); i++) alpha[i] = 0;
    for (int32_t i = 0; i < m; i += LANES) store(alpha + i, exp2_nonpositive(load(alpha + i)));
    for (int32_t i = 0; i < m; i++)
        soften(mem->scores + i * S_ROW, cols, mem->m[m0 + i], mem->l + (ptrdiff_t)(m0 + i) * LANES, alpha[i]);
}

INLINE void attend_tile(const struct call *c, const struct shape *s, int64_t h, struct span t, struct hint next,
                        const struct space *mem, const int type) {
    const struct plan *p = c->plan;
    struct piece pieces[TILE / 16 + 1];
    int32_t copied = copies(p, s), row_bytes = p->dim * c->elem;
    int32_t skip = t.prefix && p->window > 0 ? s->ctx - p->window + 1 - t.from : 0; /* seen by no row: maybe garbage */
    int n = t.prefix ? cache_pieces(c, s, h, t, mem, pieces, type)
                     : step_piece(c, p->row_start[s->r] + t.from, h, t.count, mem->kt, pieces, type);
    int32_t cols = pieces[n - 1].col + pieces[n - 1].cols;
    float alpha[CHUNK + LANES];
    for (int32_t m0 = 0; m0 < s->m; m0 += CHUNK) {
        int32_t m = least(s->m - m0, CHUNK);
        const float *q = mem->q + (ptrdiff_t)m0 * p->dim, *factor = alpha;
        float *o = mem->o + (ptrdiff_t)m0 * p->dim;
        /* While scores are computed the tile's V comes in, and the next K during the values; from a copy, K then V of
         * the next tile. */
        struct ahead keys = {next.k, (ptrdiff_t)p->block * c->elem, (next.count * c->elem + 63) / 64, p->dim};
        for (int i = 0; i < n; i++) {
            struct ahead ahead = {0};
            if (m0 == 0 && t.prefix && !copied) ahead = linear(pieces[i].v, (int64_t)pieces[i].valid * row_bytes, p->dim);
            if (m0 == 0 && copied && i == 0 && next.k) ahead = keys;
            scores(m, q, p->dim, pieces + i, mem->scores, ahead);
        }
        weigh(c, s, h, t, cols, m0, m, mem, alpha);
        for (int i = 0; i < n; i++) {
            int32_t cut = skip - pieces[i].col;
            struct ahead ahead = {0};
            if (m0 == 0 && i == 0 && next.k)
                ahead = copied ? linear(next.v, (int64_t)next.count * row_bytes, pieces[0].valid) : keys;
            cut = cut < 0 ? 0 : least(cut, pieces[i].valid);
            values(m, mem->scores, pieces + i, cut, o, p->dim, factor, ahead);
            factor = NULL;
        }
    }
}
