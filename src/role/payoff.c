#include "role/payoff.h"

enum {
    SPELL_TOKENS = 32,   /* a verdict is made anew after so many */
    BASELINE_TOKENS = 3, /* rest for so many to know the time without */
    REST_TOKENS = 256,   /* the first rest after a lost trial */
    REST_TOKENS_MAX = 8192,
    LOSS_TOKENS = 4, /* a spell ends early when it has lost the time of so many tokens without speculation */
    CHUNK_ROWS_MIN = 8, /* a chunk says what rows cost if it has so many */
    CHUNK_WEIGHT =
        8 /* of a chunk's slope: as if of batches whose squared distances from their mean sum up to this */
};

void payoff_init(struct payoff *w, bool active, bool rests)
{
    *w = (struct payoff){.active = active, .rests = active && rests, .on = true, .rest_tokens = REST_TOKENS};
}

static void spell(struct payoff *w, bool on, int64_t since_ns)
{
    w->on = on;
    w->tokens = 0;
    w->since_ns = since_ns;
    w->rest_ns = since_ns;
}

void payoff_begin(struct payoff *w)
{
    w->since_ns = 0;
    w->tokens = w->on ? 0 : w->tokens; /* a rest goes on across requests */
}

void payoff_drafted(struct payoff *w)
{
    if (w->on && !w->since_ns)
        w->since_ns = -1; /* from the next token on */
}

static void judge(struct payoff *w, int64_t now_ns)
{
    w->on_ns = (double)(now_ns - w->since_ns) / w->tokens;
    if (w->off_ns <= 0) {
        w->rest_tokens = BASELINE_TOKENS;
        spell(w, false, now_ns);
    } else if (w->on_ns > 0.97 * w->off_ns) {
        w->rest_tokens =
            w->rest_tokens <= BASELINE_TOKENS ? REST_TOKENS : PD_MIN(2 * w->rest_tokens, REST_TOKENS_MAX);
        spell(w, false, now_ns);
    } else {
        spell(w, true, now_ns);
    }
}

void payoff_token(struct payoff *w, int64_t entered_ns, int64_t now_ns)
{
    if (!w->rests)
        return;
    if (w->since_ns <= 0) {
        if (!w->on || w->since_ns < 0)
            w->since_ns = now_ns;
        w->tokens += !w->on;
        return;
    }
    w->tokens++;
    double spent = (double)(now_ns - w->since_ns);
    if (w->on) {
        if (w->tokens >= SPELL_TOKENS || (w->off_ns > 0 && spent > (w->tokens + LOSS_TOKENS) * w->off_ns))
            judge(w, now_ns);
        return;
    }
    if (entered_ns < w->rest_ns) { /* its root, or it itself, went with a guess */
        spell(w, false, now_ns);
        return;
    }
    w->off_ns = w->off_ns > 0 ? w->off_ns + 0.2 * (spent - w->off_ns) : spent;
    w->since_ns = now_ns; /* at rest each token is a sample */
    if (w->tokens < w->rest_tokens)
        return;
    bool pays = w->rest_tokens > BASELINE_TOKENS || w->on_ns <= 0.97 * w->off_ns;
    if (pays) {
        spell(w, true, 0);
    } else {
        w->rest_tokens = REST_TOKENS;
        w->tokens = 0;
    }
}

void payoff_batch(struct payoff *w, int rows, int64_t busy_ns)
{
    const double keep = 0.97;
    double x = rows, y = (double)busy_ns;
    if (!w->active)
        return;
    w->s0 = keep * w->s0 + 1;
    w->s1 = keep * w->s1 + x;
    w->s2 = keep * w->s2 + x * x;
    w->sy = keep * w->sy + y;
    w->sxy = keep * w->sxy + x * y;
    w->rows_seen = PD_MAX(w->rows_seen, rows);
}

void payoff_chunk(struct payoff *w, int stage, int rows, int64_t busy_ns)
{
    double x = rows, y = (double)busy_ns;
    if (!w->active || rows < CHUNK_ROWS_MIN)
        return;
    if (w->chunk_rows > 0 && stage == w->chunk_stage) {
        w->chunk_rows += 0.3 * (x - w->chunk_rows);
        w->chunk_ns += 0.3 * (y - w->chunk_ns);
    } else if (y * w->chunk_rows >= w->chunk_ns * x) {
        w->chunk_rows = x;
        w->chunk_ns = y;
        w->chunk_stage = stage;
    }
}

int payoff_cost(const struct payoff *w, double *rows_ns)
{
    if (!w->active)
        return 0;
    rows_ns[0] = 1;
    if (w->s0 <= 0)
        return 1; /* one row first */
    double x = w->s1 / w->s0, y = w->sy / w->s0;
    double spread = w->s2 - w->s1 * x, both = w->sxy - w->s1 * y;
    if (w->chunk_rows > x + 1) { /* drawn towards the line through the mean and the chunk */
        both += CHUNK_WEIGHT * PD_MAX(w->chunk_ns - y, 0) / (w->chunk_rows - x);
        spread += CHUNK_WEIGHT;
    }
    double slope = spread > 1e-6 ? PD_MAX(both / spread, 0) : 0;
    double base = PD_MAX(y - slope * x, y * 0.05);
    int n = PD_MIN(PD_MAX(2 * w->rows_seen, (int)w->chunk_rows), BATCH_ROWS);
    for (int i = 0; i < n; i++)
        rows_ns[i] = base + slope * (i + 1);
    return n;
}
