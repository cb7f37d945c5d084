/* ops_body: all operations of ops.h, written once; ops_plain.c, ops_avx2.c and so on include it, each compiled for its
 * instruction set. PD_OPS is the name of the table. */
#include "kernel/kv_layer.h"
#include "kernel/lanes16.h"

extern const struct ops PD_OPS;

/* ---- within a row ---- */

/* The last n % 16 elements, filled up with `fill`. */
LANE_INLINE void load_rest(const float *x, int n, float fill, vf v[H])
{
    float rest[LANES];
    for (int i = 0; i < LANES; i++)
        rest[i] = i < n ? x[i] : fill;
    EACH(h, H) v[h] = load(rest + h * W);
}

LANE_INLINE void store_rest(float *x, int n, const vf v[H])
{
    float rest[LANES];
    EACH(h, H) store(rest + h * W, v[h]);
    memcpy(x, rest, (size_t)n * sizeof *x);
}

LANE_INLINE void load_row(const float *x, vf v[H])
{
    EACH(h, H) v[h] = load(x + h * W);
}

static void norm(const float *x, const float *weight, int n, float eps, float *out)
{
    vf sum[H], v[H], w[H];
    const int whole = n / LANES * LANES, rest = n - whole;
    EACH(h, H) sum[h] = ALL(0);
    for (int i = 0; i < whole; i += LANES)
        EACH(h, H) sum[h] = FMA(load(x + i + h * W), load(x + i + h * W), sum[h]);
    if (rest) {
        load_rest(x + whole, rest, 0, v);
        EACH(h, H) sum[h] = FMA(v[h], v[h], sum[h]);
    }
    const float scale = 1.0f / sqrtf(join_sum(sum) / (float)n + eps);
    for (int i = 0; i < whole; i += LANES)
        EACH(h, H) store(out + i + h * W, load(x + i + h * W) * scale * load(weight + i + h * W));
    if (rest) {
        load_rest(x + whole, rest, 0, v);
        load_rest(weight + whole, rest, 0, w);
        EACH(h, H) v[h] = v[h] * scale * w[h];
        store_rest(out + whole, rest, v);
    }
}

static void add(float *x, const float *y, int n)
{
    for (int i = 0; i < n; i++)
        x[i] += y[i];
}

static void add_scaled(float *x, const float *y, float by, int n)
{
    for (int i = 0; i < n; i++)
        x[i] += y[i] * by;
}

static void scale(float *x, float by, int n)
{
    for (int i = 0; i < n; i++)
        x[i] *= by;
}

/* f of every element, which knows one more number. */
LANE_INLINE void each_element(float *x, int n, float with, vf (*f)(vf, float))
{
    const int whole = n / LANES * LANES, rest = n - whole;
    for (int i = 0; i < whole; i += W)
        store(x + i, f(load(x + i), with));
    if (rest) {
        vf v[H];
        load_rest(x + whole, rest, 0, v);
        EACH(h, H) v[h] = f(v[h], with);
        store_rest(x + whole, rest, v);
    }
}

LANE_INLINE vf capped(vf x, float cap)
{
    return lane_tanh(x / cap) * cap;
}

static void soft_cap(float *x, float cap, int n)
{
    each_element(x, n, cap, capped);
}

LANE_INLINE vf inverse_plus_one(vf x, float unused)
{
    (void)unused;
    return ALL(1) / (lane_exp(-x) + 1.0f);
}

static void sigmoid(float *x, int n)
{
    each_element(x, n, 0, inverse_plus_one);
}

static void rotate(float *x, const float *cosine, const float *sine, int n_rot, bool far)
{
    const int step = far ? 1 : 2, other = far ? n_rot / 2 : 1;
    for (int i = 0; i < n_rot / 2; i++) {
        const float a = x[i * step], b = x[i * step + other];
        x[i * step] = a * cosine[i] - b * sine[i];
        x[i * step + other] = a * sine[i] + b * cosine[i];
    }
}

LANE_INLINE vf silu(vf x)
{
    return x / (lane_exp(-x) + 1.0f);
}

/* x / 2 (1 + tanh y) = x / (1 + e^(-2 y)), y = sqrt(2 / pi) (x + 0.044715 x^3) */
LANE_INLINE vf gelu(vf x)
{
    vf y = x * 0x1.9884540p-1f * FMA(x * x, ALL(0.044715f), ALL(1));
    return x / (lane_exp(y * -2.0f) + 1.0f);
}

/* NaN stays. */
LANE_INLINE vf at_most(vf x, float limit)
{
    return choose(below(ALL(limit), x), ALL(limit), x);
}

LANE_INLINE vf silu_of(vf g, vf u)
{
    return silu(g) * u;
}

LANE_INLINE vf gelu_of(vf g, vf u)
{
    return gelu(g) * u;
}

LANE_INLINE vf clamped_of(vf g, vf u)
{
    const vf x = at_most(g, 7), y = -at_most(-at_most(u, 7), 7);
    return x / (lane_exp(x * -1.702f) + 1.0f) * (y + 1.0f);
}

LANE_INLINE void activate(float *gate, const float *up, int n, vf (*f)(vf, vf))
{
    const int whole = n / LANES * LANES, rest = n - whole;
    for (int i = 0; i < whole; i += W)
        store(gate + i, f(load(gate + i), load(up + i)));
    if (rest) {
        vf g[H], u[H];
        load_rest(gate + whole, rest, 0, g);
        load_rest(up + whole, rest, 0, u);
        EACH(h, H) g[h] = f(g[h], u[h]);
        store_rest(gate + whole, rest, g);
    }
}

static void silu_mul(float *gate, const float *up, int n)
{
    activate(gate, up, n, silu_of);
}

static void gelu_mul(float *gate, const float *up, int n)
{
    activate(gate, up, n, gelu_of);
}

static void clamped_mul(float *gate, const float *up, int n)
{
    activate(gate, up, n, clamped_of);
}

/* ---- K and V ---- */

static void store_halves(const float *x, int n, uint16_t *out)
{
    int i = 0;
    for (; i + W <= n; i += W)
        store_half(out + i, load(x + i));
    for (; i < n; i++)
        out[i] = half_of_float(x[i]);
}

/* 32 floats to bytes of at most 127, and their scale. A block with NaN or infinity has such a scale. */
static uint16_t quantise(const float *x, int8_t *q)
{
    float max = 0, sum = 0;
    for (int i = 0; i < KV_BLOCK; i++) {
        const float size = fabsf(x[i]);
        max = size > max ? size : max;
        sum += size * 0.0f; /* NaN if any is NaN or infinite */
    }
    const float scale = max / 127.0f + sum;
    const float inverse = max > 0x1p-120f && scale - scale == 0 ? 127.0f / max : 0;
    for (int i = 0; i < KV_BLOCK; i++) {
        float y = (sum == 0 ? x[i] : 0) * inverse + 12582912.0f; /* 1.5 * 2^23: rounds, ties to even */
        int32_t bits;
        memcpy(&bits, &y, sizeof bits);
        q[i] = (int8_t)(bits & 0xff);
    }
    return half_of_float(scale);
}

static void store_k(const struct kv_layer *l, int head, int slot, const float *x)
{
    const int lane = slot % KV_TILE, n = l->head_dim;
    void *tile = k_tile(l, head, slot / KV_TILE);
    if (l->form == KV_FORM_F32) {
        float *k = tile;
        for (int d = 0; d < n; d++)
            k[d * KV_TILE + lane] = x[d];
    } else if (l->form == KV_FORM_F16) {
        uint16_t *k = tile, half[LANES];
        for (int d = 0; d < n; d += LANES) {
            const int some = n - d < LANES ? n - d : LANES;
            store_halves(x + d, some, half);
            for (int i = 0; i < some; i++)
                k[(d + i) * KV_TILE + lane] = half[i];
        }
    } else {
        int8_t q[KV_BLOCK], *block = tile;
        for (int d = 0; d < n; d += KV_BLOCK, block += KV_TILE * KV_BLOCK_BYTES) {
            const uint16_t scale = quantise(x + d, q);
            memcpy(block + lane * 2, &scale, 2);
            for (int i = 0; i < KV_BLOCK; i++)
                block[KV_TILE * 2 + i * KV_TILE + lane] = q[i];
        }
    }
}

static void store_v(const struct kv_layer *l, int head, int slot, const float *x)
{
    void *row = v_row(l, head, slot);
    if (l->form == KV_FORM_F32)
        memcpy(row, x, (size_t)v_width(l) * sizeof *x);
    else if (l->form == KV_FORM_F16)
        store_halves(x, v_width(l), row);
    else
        for (int d = 0; d < v_width(l); d += KV_BLOCK) {
            int8_t *block = (int8_t *)row + d / KV_BLOCK * KV_BLOCK_BYTES;
            const uint16_t scale = quantise(x + d, block + 2);
            memcpy(block, &scale, 2);
        }
}

static void store_kv(const struct kv_layer *l, int slot, const float *k, const float *v)
{
    for (int h = 0; h < l->n_head_kv; h++) {
        store_k(l, h, slot, k + h * l->head_dim);
        store_v(l, h, slot, v + h * v_width(l));
    }
}

/* ---- attention ----
 *
 * G query vectors of one K/V head at once, of one row or of several. They share the walk over the slots that all of
 * them see; what a row sees beyond that is walked row by row. None of it shows in a result: a score is one chain over
 * the dimensions, an output element one chain over the positions by rank, the sum of the weights 16 chains by rank
 * modulo 16. */

#if defined(__AVX512F__)
enum { GROUP = 8 };
#elif defined(LANES_SCALAR)
enum { GROUP = 1 };
#else
enum { GROUP = 4 };
#endif

struct vector {
    const float *q;
    float *out;
    float *sum; /* scratch: what out becomes, filled up to 16 */
    float *
        score; /* scratch: scores, then weights, by place: slots below the prefix, then the tail's. Ranks begin at the
                   * row's first place */
    const struct attention_row *row;
    int end;           /* of its places */
    const float *sink; /* NULL: none */
};

struct group {
    const struct attention *a;
    int head, n;
    int from,
        shared; /* slots that are walked for all of them: from the first that any sees to the last that all may */
    struct vector v[GROUP];
};

LANE_INLINE int slot_of_place(const struct attention_row *row, int place)
{
    return place < row->prefix ? place : row->tail[place - row->prefix];
}

/* Element d of 16 slots of K. */
LANE_INLINE void load_k(enum kv_form form, const void *tile, int d, vf k[H])
{
    if (form == KV_FORM_F32) {
        load_row((const float *)tile + d * KV_TILE, k);
    } else if (form == KV_FORM_F16) {
        EACH(h, H) k[h] = load_half((const uint16_t *)tile + d * KV_TILE + h * W);
    } else {
        const int8_t *block = (const int8_t *)tile + (size_t)(d / KV_BLOCK) * (KV_TILE * KV_BLOCK_BYTES);
        EACH(h, H)
        k[h] = load_int8(block + KV_TILE * 2 + d % KV_BLOCK * KV_TILE + h * W) *
               load_half((const uint16_t *)(const void *)block + h * W);
    }
}

/* Elements d .. d + 15 of a slot's V. */
LANE_INLINE void load_v(enum kv_form form, const void *row, int d, vf v[H])
{
    if (form == KV_FORM_F32) {
        load_row((const float *)row + d, v);
    } else if (form == KV_FORM_F16) {
        EACH(h, H) v[h] = load_half((const uint16_t *)row + d + h * W);
    } else {
        const int8_t *block = (const int8_t *)row + d / KV_BLOCK * KV_BLOCK_BYTES;
        uint16_t scale;
        memcpy(&scale, block, sizeof scale);
        EACH(h, H) v[h] = load_int8(block + 2 + d % KV_BLOCK + h * W) * half_to_float(scale);
    }
}

/* 16 slots' scores for G vectors, to out[g][0 .. 15]. */
LANE_INLINE void score_tile(enum kv_form form, int G, const void *tile, int head_dim, float scale,
                            const struct vector *v, float *const *out)
{
    vf sum[GROUP][H];
    EACH(g, G) EACH(h, H) sum[g][h] = ALL(0);
    for (int d = 0; d < head_dim; d++) {
        vf k[H];
        load_k(form, tile, d, k);
        EACH(g, G) EACH(h, H) sum[g][h] = FMA(k[h], ALL(v[g].q[d]), sum[g][h]);
    }
    EACH(g, G) EACH(h, H) store(out[g] + h * W, sum[g][h] * scale);
}

/* Scores of the slots that the group shares, and of what their first and last tiles have beyond them. */
LANE_INLINE void score_shared(enum kv_form form, int G, const struct group *s)
{
    for (int tile = s->from / KV_TILE; tile * KV_TILE < s->shared; tile++) {
        float *out[GROUP];
        EACH(g, G) out[g] = s->v[g].score + tile * KV_TILE;
        score_tile(form, G, k_tile(&s->a->kv, s->head, tile), s->a->kv.head_dim, s->a->scale, s->v, out);
    }
}

/* Where the places of one vector begin that are not shared. */
LANE_INLINE int alone_from(const struct vector *v, int shared)
{
    return PD_MAX(shared, v->row->first);
}

/* Scores of the other positions that one vector sees. */
LANE_INLINE void score_tail(enum kv_form form, const struct attention *a, int head, int shared,
                            const struct vector *v)
{
    float some[LANES], *out = some;
    for (int place = alone_from(v, shared), tile = -1; place < v->end; place++) {
        const int slot = slot_of_place(v->row, place);
        if (slot / KV_TILE != tile) {
            tile = slot / KV_TILE;
            score_tile(form, 1, k_tile(&a->kv, head, tile), a->kv.head_dim, a->scale, v, &out);
        }
        v->score[place] = some[slot % KV_TILE];
    }
}

/* Scores to weights; returns their sum, to which a sink adds its own. */
static float to_weights(float *score, int n, const float *sink)
{
    vf top[H], sum[H];
    const int padded = (n + LANES - 1) / LANES * LANES;
    for (int i = n; i < padded; i++)
        score[i] = -INFINITY;
    EACH(h, H) top[h] = ALL(-INFINITY);
    for (int i = 0; i < padded; i += LANES)
        EACH(h, H)
        {
            vf s = load(score + i + h * W);
            top[h] = choose(below(top[h], s), s, top[h]);
        }
    float max = join_max(top);
    if (sink)
        max = *sink > max ? *sink : max;
    EACH(h, H) sum[h] = ALL(0);
    for (int i = 0; i < padded; i += LANES)
        EACH(h, H)
        {
            vf e = lane_exp(load(score + i + h * W) - max);
            store(score + i + h * W, e);
            sum[h] += e;
        }
    float total = join_sum(sum);
    if (sink) {
        float lanes[W];
        store(lanes, lane_exp(ALL(*sink - max)));
        total += lanes[0];
    }
    return total;
}

static void softmax(float *x, int n)
{
    const float total = to_weights(x, n, NULL);
    for (int i = 0; i < n; i++)
        x[i] /= total;
}

/* Output elements d .. d + 16 C - 1 of G vectors, as far as the shared slots go. What a vector does not see there has
 * the weight 0, which leaves a sum of finite numbers as it is. */
LANE_INLINE void mix_shared(enum kv_form form, int G, int C, const struct group *s, int d)
{
    vf sum[GROUP][4][H];
    const struct vector *v = s->v;
    const char *row = v_row(&s->a->kv, s->head, s->from);
    const size_t step = v_row_bytes(&s->a->kv);
    EACH(g, G) EACH(c, C) EACH(h, H) sum[g][c][h] = ALL(0);
    for (int i = s->from; i < s->shared; i++, row += step)
        EACH(c, C)
        {
            vf x[H];
            load_v(form, row, d + c * LANES, x);
            EACH(g, G) EACH(h, H) sum[g][c][h] = FMA(x[h], ALL(v[g].score[i]), sum[g][c][h]);
        }
    EACH(g, G) EACH(c, C) EACH(h, H) store(v[g].sum + d + c * LANES + h * W, sum[g][c][h]);
}

/* The rest of one vector's positions, and the division by the weights' sum. */
LANE_INLINE void mix_tail(enum kv_form form, const struct attention *a, int head, int shared,
                          const struct vector *v, float total)
{
    const int width = v_width(&a->kv);
    for (int d = 0; d < width; d += LANES) {
        vf sum[H], x[H];
        load_row(v->sum + d, sum);
        for (int place = alone_from(v, shared); place < v->end; place++) {
            load_v(form, v_row(&a->kv, head, slot_of_place(v->row, place)), d, x);
            EACH(h, H) sum[h] = FMA(x[h], ALL(v->score[place]), sum[h]);
        }
        EACH(h, H) sum[h] = sum[h] / total;
        if (width - d >= LANES)
            EACH(h, H) store(v->out + d + h * W, sum[h]);
        else
            store_rest(v->out + d, width - d, sum);
    }
}

LANE_INLINE void mix_group(enum kv_form form, int G, const struct group *s)
{
    enum { WIDE = LANE_ACCUMULATORS };
    const int C = WIDE / G < 1 ? 1 : WIDE / G > 4 ? 4 : WIDE / G, width = v_width(&s->a->kv);
    int d = 0;
    for (; d + C * LANES <= width; d += C * LANES)
        mix_shared(form, G, C, s, d);
    for (; d < width; d += LANES)
        mix_shared(form, G, 1, s, d);
}

/* Calls with the group's size as a constant. */
#define WITH_SIZE(call)                                                                                      \
    switch (s->n) {                                                                                          \
    case 1:                                                                                                  \
        call(1);                                                                                             \
        break;                                                                                               \
        WITH_OTHER_SIZES(call)                                                                               \
    }
#if defined(LANES_SCALAR)
enum { SIZES = 1 };
static const int sizes[SIZES] = {1};
#define WITH_OTHER_SIZES(call)
#else
#define SIZE_CASE(n, call)                                                                                   \
    case n:                                                                                                  \
        call(n);                                                                                             \
        break;
#if defined(__AVX512F__)
enum { SIZES = 5 };
static const int sizes[SIZES] = {8, 6, 4, 2, 1};
#define WITH_OTHER_SIZES(call) SIZE_CASE(8, call) SIZE_CASE(6, call) SIZE_CASE(4, call) SIZE_CASE(2, call)
#else
enum { SIZES = 4 };
static const int sizes[SIZES] = {4, 3, 2, 1};
#define WITH_OTHER_SIZES(call) SIZE_CASE(4, call) SIZE_CASE(3, call) SIZE_CASE(2, call)
#endif
#endif

/* Weights of a vector whose scores are there, and 0 for what the group walks over and it does not see. */
static float weigh(const struct group *s, const struct vector *v)
{
    const int first = v->row->first, n = v->end - first;
    if (s->a->cap != 0)
        soft_cap(v->score + first, s->a->cap, n);
    for (int i = s->from; i < PD_MIN(first, s->shared); i++)
        v->score[i] = 0;
    return to_weights(v->score + first, n, v->sink);
}

LANE_INLINE void attend_group(enum kv_form form, struct group *s)
{
    float total[GROUP];
#define SCORE(n) score_shared(form, n, s)
#define MIX(n)   mix_group(form, n, s)
    WITH_SIZE(SCORE)
    for (int g = 0; g < s->n; g++) {
        score_tail(form, s->a, s->head, s->shared, &s->v[g]);
        total[g] = weigh(s, &s->v[g]);
    }
    WITH_SIZE(MIX)
    for (int g = 0; g < s->n; g++)
        mix_tail(form, s->a, s->head, s->shared, &s->v[g], total[g]);
#undef SCORE
#undef MIX
}

static void attend_f16(struct group *s)
{
    attend_group(KV_FORM_F16, s);
}

static void attend_f32(struct group *s)
{
    attend_group(KV_FORM_F32, s);
}

static void attend_q8_0(struct group *s)
{
    attend_group(KV_FORM_Q8_0, s);
}

static void attend(const struct attention *a, int first, int end, void *scratch)
{
    static void (*const of_form[KV_FORM_COUNT])(struct group *) = {
        [KV_FORM_F16] = attend_f16, [KV_FORM_F32] = attend_f32, [KV_FORM_Q8_0] = attend_q8_0};
    const int per_row = a->n_head / a->kv.n_head_kv, per_head = per_row * a->n_rows;
    const size_t room = attention_scratch_bytes(a) / ATTENTION_GROUP / sizeof(float);
    const size_t v_dim = (size_t)v_width(&a->kv), sum_room = (v_dim + LANES - 1) / LANES * LANES;
    for (int i = first; i < end;) {
        struct group s = {.a = a, .head = i / per_head};
        int left = PD_MIN(end, (s.head + 1) * per_head) - i, k = 0;
        while (sizes[k] > left)
            k++;
        for (s.n = 0; s.n < sizes[k]; s.n++, i++) {
            const int row = i % per_head / per_row, q_head = s.head * per_row + i % per_row;
            const size_t at = (size_t)row * (size_t)a->n_head + (size_t)q_head;
            const struct attention_row *sees = &a->rows[row];
            float *own = (float *)scratch + (size_t)s.n * room;
            s.v[s.n] = (struct vector){.q = a->q + at * (size_t)a->kv.head_dim,
                                       .out = a->out + at * v_dim,
                                       .sum = own,
                                       .score = own + sum_room,
                                       .row = sees,
                                       .end = sees->prefix + sees->n_tail,
                                       .sink = a->sinks ? &a->sinks[q_head] : NULL};
            s.shared = s.n == 0 ? sees->prefix : PD_MIN(s.shared, sees->prefix);
            s.from = s.n == 0 ? sees->first : PD_MIN(s.from, sees->first);
        }
        of_form[a->kv.form](&s);
    }
}

const struct ops PD_OPS = {.norm = norm,
                           .add = add,
                           .add_scaled = add_scaled,
                           .scale = scale,
                           .soft_cap = soft_cap,
                           .sigmoid = sigmoid,
                           .softmax = softmax,
                           .rotate = rotate,
                           .silu_mul = silu_mul,
                           .gelu_mul = gelu_mul,
                           .clamped_mul = clamped_mul,
                           .store = store_kv,
                           .attend = attend};
