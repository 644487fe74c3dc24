/* Tree attention over a paged KV cache.
 *
 * A request's rows (root and draft nodes) times the query heads of one KV head form a small matrix. For every tile of
 * the context it is multiplied with K, soft-maxed online and multiplied with V, so the cache is read once per KV head
 * whatever the number of rows. The request's own rows are one more tile at the end, under the ancestor mask.
 * Work = all (request, KV head) items one after the other, cut into one equal range per thread; the thread that
 * finishes a cut item last adds its parts up, in order, so results do not depend on timing.
 */
#include "tile.h"

#define NOTHING (-1e30f) /* running maximum before anything was seen; finite, so that differences stay finite */

extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

static __thread struct memory scratch, shared;

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
INLINE void write_row(const struct call *c, const struct shape *s, int64_t h, int32_t i, const float *o, float m,
                      float l, const int type) {
    const struct plan *p = c->plan;
    int64_t start = p->row_start[s->r];
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
INLINE void join(const struct call *c, const struct shape *s, int64_t h, int32_t first, int32_t last,
                 const int type) {
    const struct plan *p = c->plan;
    float *o = grow(&scratch, p->dim);
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
        write_row(c, s, h, i, o, m, l, type);
    }
}

/* All spans of an item between two units; `then` is what this thread turns to next. */
INLINE void attend_spans(const struct call *c, const struct shape *s, int64_t h, int32_t unit, int32_t end,
                         struct hint then, const struct space *mem, const int type) {
    size_t wide = (size_t)s->m * c->plan->dim;
    load_queries(c, c->plan->row_start[s->r], h, s->rows, mem->q, type);
    memset(mem->o, 0, wide * sizeof(float));
    memset(mem->l, 0, (size_t)s->m * LANES * sizeof(float));
    for (int32_t i = 0; i < s->m; i++) mem->m[i] = NOTHING;
    while (unit < end) {
        struct span now = span_of(s, unit, end);
        struct hint next = then;
        unit = now.next;
        if (unit < end && unit < s->grains) next = hint_of(c, s, h, span_of(s, unit, end));
        attend_tile(c, s, h, now, now.prefix ? next : (struct hint){0}, mem, type);
    }
}

INLINE void attend_item(struct call *c, int32_t part, int64_t item, const int type) {
    const struct plan *p = c->plan;
    int64_t h = item % p->kv_heads;
    struct shape s = shape_of(p, item / p->kv_heads);
    struct cut begin = {item, 0}, end = {item + 1, 0};
    int32_t a = c->cuts[part].item == item ? c->cuts[part].unit : 0;
    int32_t e = c->cuts[part + 1].item == item ? c->cuts[part + 1].unit : s.units;
    if (a >= e) return;
    struct hint then = {0};
    if (before_cut(end, c->cuts[part + 1])) {
        struct shape t = shape_of(p, end.item / p->kv_heads);
        if (t.units) then = hint_of(c, &t, end.item % p->kv_heads, span_of(&t, 0, t.units));
    }
    size_t wide = (size_t)s.m * p->dim, tile = (size_t)TILE * p->dim;
    int whole = a == 0 && e == s.units;
    struct space mem = {.kt = grow(&scratch, 2 * wide + (size_t)s.m * (LANES + 1) + CHUNK * S_ROW + 2 * tile)};
    mem.vt = mem.kt + tile;
    mem.scores = mem.vt + tile;
    mem.q = mem.scores + CHUNK * S_ROW;
    mem.l = mem.q + wide;
    mem.o = whole ? mem.l + (size_t)s.m * LANES : slot(c, part, a == 0);
    mem.m = mem.o + wide; /* in a slot the sums follow the maxima */
    attend_spans(c, &s, h, a, e, then, &mem, type);
    if (whole) {
        for (int32_t i = 0; i < s.m; i++)
            write_row(c, &s, h, i, mem.o + (size_t)i * p->dim, mem.m[i], reduce_sum(load(mem.l + i * LANES)), type);
        return;
    }
    for (int32_t i = 0; i < s.m; i++) mem.m[s.m + i] = reduce_sum(load(mem.l + i * LANES));
    int32_t first = part, last = part, pieces = 0;
    while (before_cut(begin, c->cuts[first])) first--;
    while (before_cut(c->cuts[last + 1], end)) last++;
    for (int32_t i = first; i <= last; i++) pieces += before_cut(c->cuts[i], c->cuts[i + 1]);
    if (__atomic_add_fetch(&c->done[first], 1, __ATOMIC_ACQ_REL) == pieces) join(c, &s, h, first, last, type);
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
    if (cut_work(&c)) return -1;
    if (c.max_rows == 0) return 0;
    memset(c.done, 0, c.parts * sizeof(int32_t));
    c.slot_size = ((int64_t)c.max_rows * (p->dim + 2) + 15) / 16 * 16;
    c.slots = c.parts > 1 ? grow(&shared, (size_t)c.slot_size * 2 * c.parts) : NULL;
    if (c.parts > 1 && GOMP_parallel) GOMP_parallel(attend_thread, &c, (unsigned)c.parts, 0);
    else for (int32_t part = 0; part < c.parts; part++) attend_part(&c, part);
    return 0;
}

int thriftree_lanes(void) { return LANES; }
int thriftree_parallel(void) { return GOMP_parallel && omp_get_thread_num && omp_get_num_threads; }
