/* Read and move cached rows, whatever the layout: an element's place is a sum of strides. */
#include "turn.h"

/* One half of a cache (keys or values), kept in step with cpu.py. Strides in bytes. Token `t` of a block lies at
 * t / tokens * token_outer + t % tokens * token_inner, its channels in `outers` x `inners` pieces of `unit` bytes. */
struct side {
    char *const *caches; /* one per layer */
    int64_t block, head, token_outer, token_inner, outer, inner;
    int32_t tokens, outers, inners, unit;
};

/* Both halves have the same blocks. A cell is (block * heads + head) * rows + row of the block. */
struct move {
    struct side sides[2];
    const int64_t *from, *to, *offsets;
    int64_t cells;
    int32_t layers, heads, rows, threads;
};

struct read {
    struct side side;
    const int64_t *table; /* [lines, width] head blocks */
    char *out;            /* [lines, count, row bytes] */
    int64_t width, count, blocks;
    int32_t lines, heads, rows, threads;
};

extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

static void run(void (*work)(void *), void *arg, int32_t threads) {
    if (threads > 1 && GOMP_parallel) GOMP_parallel(work, arg, (unsigned)threads, 0);
    else work(arg);
}

/* This thread's share of `items`. */
static void share(int64_t items, int64_t *first, int64_t *last) {
    int64_t all = omp_get_num_threads ? omp_get_num_threads() : 1, mine = omp_get_thread_num ? omp_get_thread_num() : 0;
    *first = items * mine / all;
    *last = items * (mine + 1) / all;
}

/* 64-bit divisions are slow, and few caches have more than 2^32 cells. */
INLINE int64_t divide(int64_t a, int32_t b) { return a >> 32 ? a / b : (int64_t)((uint32_t)a / (uint32_t)b); }

INLINE int64_t token(const struct side *s, int64_t t) {
    if (s->tokens == 1) return t * s->token_outer;
    int64_t outer = divide(t, s->tokens);
    return outer * s->token_outer + (t - outer * s->tokens) * s->token_inner;
}

struct place {
    int64_t block, head, row;
};

INLINE struct place place(int64_t cell, int32_t heads, int32_t rows) {
    int64_t head_block = divide(cell, rows), block = heads == 1 ? head_block : divide(head_block, heads);
    return (struct place){block, head_block - block * heads, cell - head_block * rows};
}

INLINE char *cell_at(const struct side *s, int32_t layer, struct place p) {
    return s->caches[layer] + p.block * s->block + p.head * s->head + token(s, p.row);
}

enum { BATCH = 64 };

/* Cells of one layer, as places in its cache. */
struct batch {
    int64_t from[BATCH], to[BATCH];
    int32_t count;
};

/* Piece by piece and not cell by cell: where a key is a column, cells side by side share cache lines. */
INLINE void copy_pieces(const struct side *s, char *cache, const struct batch *b, const int unit) {
    for (int32_t o = 0; o < s->outers; o++)
        for (int32_t i = 0; i < s->inners; i++) {
            char *at = cache + o * s->outer + i * s->inner;
            for (int32_t j = 0; j < b->count; j++) memcpy(at + b->to[j], at + b->from[j], (size_t)unit);
        }
}

static void copy_batch(const struct move *m, int32_t layer, const struct place *from, const struct place *to,
                       int32_t count) {
    struct batch b = {.count = count};
    for (const struct side *s = m->sides; s < m->sides + 2; s++) {
        for (int32_t j = 0; j < count; j++) {
            b.from[j] = from[j].block * s->block + from[j].head * s->head + token(s, from[j].row);
            b.to[j] = to[j].block * s->block + to[j].head * s->head + token(s, to[j].row);
        }
        if (s->unit == 4) copy_pieces(s, s->caches[layer], &b, 4);
        else if (s->unit == 2) copy_pieces(s, s->caches[layer], &b, 2);
        else copy_pieces(s, s->caches[layer], &b, s->unit);
    }
}

static void move_share(void *arg) {
    const struct move *m = arg;
    int64_t i, last;
    share(m->cells, &i, &last);
    struct place from[BATCH], to[BATCH];
    for (int32_t layer = 0; i < last; layer++) {
        int64_t end = m->offsets[layer + 1] < last ? m->offsets[layer + 1] : last;
        while (i < end) {
            int32_t count = 0;
            for (; i < end && count < BATCH; i++) {
                if (m->from[i] < 0 || m->to[i] < 0) continue;
                from[count] = place(m->from[i], m->heads, m->rows);
                to[count++] = place(m->to[i], m->heads, m->rows);
            }
            copy_batch(m, layer, from, to, count);
        }
    }
}

/* 0 if nothing was wrong; nothing is written otherwise. `limit`: cells of a cache. */
int thriftree_move(const struct move *m, int64_t limit) {
    if (m->offsets[0] != 0 || m->offsets[m->layers] != m->cells) return 1;
    for (int32_t layer = 0; layer < m->layers; layer++)
        if (m->offsets[layer] > m->offsets[layer + 1]) return 1;
    for (int64_t i = 0; i < m->cells; i++)
        if (m->from[i] >= limit || m->to[i] >= limit) return 2;
    run(move_share, (void *)m, m->cells < 64 ? 1 : m->threads);
    return 0;
}

enum { TILE = 16 }; /* tokens and pieces: as many cache lines of input as of output */

/* A tile of TILE tokens whose pieces lie side by side; `unit` 2 or 4. */
INLINE void turn_tile(char *out, int64_t row, const char *in, int64_t line, int32_t pieces, const int unit) {
    const int n = 16 / unit;
    for (int32_t first = 0; first < pieces; first += TILE)
        for (int t = 0; t < TILE; t += n)
            for (int32_t i = first; i < first + TILE; i += n) {
                char *to = out + t * row + (int64_t)i * unit;
                if (unit == 4) turn4(to, row, in + i * line + t * unit, line);
                else turn8(to, row, in + i * line + t * unit, line);
            }
}

INLINE void read_pieces(const struct side *s, char *out, const char *in, int64_t tokens, int64_t row, const int unit) {
    int64_t step = s->tokens == 1 ? s->token_outer : s->token_inner;
    int whole = s->tokens == 1 || s->tokens % TILE == 0;
    if (unit <= 4 && step == unit && whole && tokens == TILE && s->outers == 1 && s->inners % TILE == 0) {
        turn_tile(out, row, in, s->inner, s->inners, unit);
        return;
    }
    for (int64_t t = 0; t < tokens; t++) {
        const char *from = in + token(s, t);
        char *to = out + t * row;
        for (int32_t o = 0; o < s->outers; o++)
            for (int32_t i = 0; i < s->inners; i++, to += unit)
                memcpy(to, from + o * s->outer + i * s->inner, (size_t)unit);
    }
}

static void read_block(const struct side *s, char *out, const char *in, int64_t tokens) {
    int64_t row = (int64_t)s->outers * s->inners * s->unit;
    if (row == s->unit && s->tokens == 1 && s->token_outer == row) {
        memcpy(out, in, (size_t)(tokens * row));
        return;
    }
    for (int64_t first = 0; first < tokens; first += TILE) {
        int64_t count = tokens - first < TILE ? tokens - first : TILE;
        const char *from = in + token(s, first);
        if (s->unit == 4) read_pieces(s, out + first * row, from, count, row, 4);
        else if (s->unit == 2) read_pieces(s, out + first * row, from, count, row, 2);
        else read_pieces(s, out + first * row, from, count, row, s->unit);
    }
}

static void read_share(void *arg) {
    const struct read *r = arg;
    int64_t first, last, used = (r->count + r->rows - 1) / r->rows;
    int64_t row = (int64_t)r->side.outers * r->side.inners * r->side.unit;
    share(r->lines * used, &first, &last);
    for (int64_t item = first; item < last; item++) {
        int64_t line = item / used, column = item % used, at = column * r->rows;
        struct place from = place(r->table[line * r->width + column] * r->rows, r->heads, r->rows);
        int64_t tokens = r->count - at < r->rows ? r->count - at : r->rows;
        read_block(&r->side, r->out + (line * r->count + at) * row, cell_at(&r->side, 0, from), tokens);
    }
}

/* 0 if nothing was wrong. */
int thriftree_read(const struct read *r) {
    int64_t used = (r->count + r->rows - 1) / r->rows;
    if (used > r->width) return 1;
    for (int32_t line = 0; line < r->lines; line++)
        for (int64_t i = 0; i < used; i++) {
            int64_t head_block = r->table[line * r->width + i];
            if (head_block < 0 || head_block >= r->blocks) return 2;
        }
    run(read_share, (void *)r, r->lines * r->count < 256 ? 1 : r->threads);
    return 0;
}
