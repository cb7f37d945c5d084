/* Counters of the front, and Prometheus' text format (version 0.0.4). */
#include "serve/metrics.h"

#include <stdio.h>

/* Bounds of tokens: from the fast machine's to the long pipeline's; of first tokens: prompts may be long. */
static const double between_bounds[METRICS_BUCKETS] = {.001, .002, .005, .01, .02, .03, .05,
                                                       .075, .1,   .2,   .5,  1,   2,   5};
static const double first_bounds[METRICS_BUCKETS] = {.01, .02, .05, .1, .2, .5,  1,
                                                     2,   5,   10,  20, 60, 120, 300};

void metrics_init(struct metrics *m)
{
    *m = (struct metrics){.between.bounds = between_bounds, .first.bounds = first_bounds};
    pthread_mutex_init(&m->lock, NULL);
}

void metrics_free(struct metrics *m)
{
    pthread_mutex_destroy(&m->lock);
}

static void count(struct histogram *h, double seconds)
{
    int i = 0;
    while (i < METRICS_BUCKETS && seconds > h->bounds[i])
        i++;
    h->counts[i]++;
    h->sum += seconds;
}

void metrics_token(struct metrics *m, bool first, double seconds)
{
    pthread_mutex_lock(&m->lock);
    count(first ? &m->first : &m->between, seconds);
    pthread_mutex_unlock(&m->lock);
}

void metrics_answer(struct metrics *m, int code)
{
    pthread_mutex_lock(&m->lock);
    for (int i = 0; i < METRICS_CODES; i++)
        if (m->codes[i] == code || !m->codes[i]) {
            m->codes[i] = code;
            m->answers[i]++;
            break;
        }
    pthread_mutex_unlock(&m->lock);
}

void metrics_lost(struct metrics *m, bool slow)
{
    pthread_mutex_lock(&m->lock);
    if (slow)
        m->slow++;
    else
        m->lost++;
    pthread_mutex_unlock(&m->lock);
}

void metrics_connection(struct metrics *m, int change)
{
    pthread_mutex_lock(&m->lock);
    m->connections += change;
    pthread_mutex_unlock(&m->lock);
}

/* ---- writing ---- */

static void PD_PRINTF(2, 3) put(struct text_buf *out, const char *fmt, ...)
{
    char line[320];
    struct pd_error err;
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    text_buf_add(out, line, (size_t)PD_MIN(n, (int)sizeof line - 1), &err);
}

static void head(struct text_buf *out, const char *name, const char *type, const char *help)
{
    put(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void one(struct text_buf *out, const char *name, const char *type, const char *help, double value)
{
    head(out, name, type, help);
    put(out, "%s %.17g\n", name, value);
}

static void labelled(struct text_buf *out, const char *name, const char *label, const char *of, double value)
{
    put(out, "%s{%s=\"%s\"} %.17g\n", name, label, of, value);
}

static void histogram(struct text_buf *out, const char *name, const char *help, const struct histogram *h)
{
    uint64_t sum = 0;
    head(out, name, "histogram", help);
    for (int i = 0; i < METRICS_BUCKETS; i++) {
        sum += h->counts[i];
        put(out, "%s_bucket{le=\"%g\"} %llu\n", name, h->bounds[i], (unsigned long long)sum);
    }
    sum += h->counts[METRICS_BUCKETS];
    put(out, "%s_bucket{le=\"+Inf\"} %llu\n%s_sum %.9g\n%s_count %llu\n", name, (unsigned long long)sum, name,
        h->sum, name, (unsigned long long)sum);
}

/* Of the submitted rows those are not drafted that begin anew after a miss, and without a draft all. */
static double drafted(const struct backend_status *s)
{
    return s->draft_name[0] && s->drafted > s->begun_anew ? (double)(s->drafted - s->begun_anew) : 0;
}

/* The names that dashboards for llama.cpp's server know. */
static void known_names(struct text_buf *out, const struct backend_status *s)
{
    const struct {
        const char *name, *type, *help;
        double value;
    } all[] = {
        {"llamacpp:prompt_tokens_total", "counter", "Prompt tokens computed",
         (double)(s->prompt_tokens - s->kept_tokens)},
        {"llamacpp:prompt_seconds_total", "counter", "Time spent on prompts", s->prompt_s},
        {"llamacpp:tokens_predicted_total", "counter", "Tokens produced", (double)s->tokens},
        {"llamacpp:tokens_predicted_seconds_total", "counter", "Time spent on tokens", s->decode_s},
        {"llamacpp:n_decode_total", "counter", "Batches submitted", (double)s->batches},
        {"llamacpp:spec_decode_num_draft_tokens_total", "counter", "Drafted tokens submitted", drafted(s)},
        {"llamacpp:spec_decode_num_accepted_tokens_total", "counter", "Drafted tokens that came true",
         (double)s->accepted},
        {"llamacpp:prompt_tokens_seconds", "gauge", "Prompt tokens a second, mean",
         s->prompt_s > 0 ? (double)(s->prompt_tokens - s->kept_tokens) / s->prompt_s : 0},
        {"llamacpp:predicted_tokens_seconds", "gauge", "Tokens a second, mean",
         s->decode_s > 0 ? (double)s->tokens / s->decode_s : 0},
        {"llamacpp:requests_processing", "gauge", "Requests that run", s->running},
        {"llamacpp:requests_deferred", "gauge", "Requests that wait", s->waiting},
    };
    for (size_t i = 0; i < PD_COUNT(all); i++)
        one(out, all[i].name, all[i].type, all[i].help, all[i].value);
}

static void pipeline(struct text_buf *out, const struct backend_status *s)
{
    char index[16];
    static const char rows[] = "pipedec_rows_total", tokens[] = "pipedec_tokens_found_total";
    static const char busy[] = "pipedec_stage_busy_share", computed[] = "pipedec_stage_rows_total";
    static const char bytes[] = "pipedec_link_bytes_total";
    head(out, rows, "counter", "Rows computed, by their fate");
    labelled(out, rows, "fate", "prompt", (double)s->prompt_rows);
    labelled(out, rows, "fate", "accepted", (double)s->accepted);
    labelled(out, rows, "fate", "root", (double)s->drafted - drafted(s));
    labelled(out, rows, "fate", "discarded", PD_MAX(drafted(s) - (double)s->accepted, 0));
    head(out, tokens, "counter", "Tokens, by where the prediction tree had them");
    labelled(out, tokens, "where", "hit", (double)s->hits);
    labelled(out, tokens, "where", "late", (double)s->late);
    labelled(out, tokens, "where", "miss", (double)s->misses);
    head(out, busy, "gauge", "Share of the time in which a stage computes, since the engine's start");
    for (int i = 0; i < s->n_stages && i < BACKEND_STAGES; i++) {
        snprintf(index, sizeof index, "%d", i);
        labelled(out, busy, "stage", index, s->stages[i].busy_share);
    }
    head(out, computed, "counter", "Rows that a stage computed since the engine's start");
    for (int i = 0; i < s->n_stages && i < BACKEND_STAGES; i++) {
        snprintf(index, sizeof index, "%d", i);
        labelled(out, computed, "stage", index, (double)s->stages[i].rows);
    }
    head(out, bytes, "counter",
         "Bytes that a rank has sent to others and got from them since the engine's start");
    for (int i = 0; i <= s->n_stages && i <= BACKEND_STAGES && s->n_stages; i++) {
        put(out, "%s{rank=\"%d\",direction=\"sent\"} %llu\n", bytes, i, (unsigned long long)s->links[i].sent);
        put(out, "%s{rank=\"%d\",direction=\"received\"} %llu\n", bytes, i,
            (unsigned long long)s->links[i].received);
    }
    one(out, "pipedec_draft_busy_seconds_total", "counter", "Time in which the draft computed",
        s->draft_busy_s);
    one(out, "pipedec_engine_starts_total", "counter", "Starts of the engine, the first included", s->starts);
    one(out, "pipedec_engine_ready", "gauge", "1 while the engine takes requests", s->state == BACKEND_READY);
    one(out, "pipedec_requests_total", "counter", "Requests that have ended", (double)s->requests);
    one(out, "pipedec_prompt_tokens_kept_total", "counter", "Prompt tokens found in the cache",
        (double)s->kept_tokens);
}

void metrics_write(struct metrics *m, const struct backend_status *s, struct text_buf *out)
{
    struct metrics now;
    char code[16];
    pthread_mutex_lock(&m->lock);
    now = *m;
    pthread_mutex_unlock(&m->lock);
    known_names(out, s);
    pipeline(out, s);
    histogram(out, "pipedec_time_between_tokens_seconds", "From a token to the next one of its request",
              &now.between);
    histogram(out, "pipedec_time_to_first_token_seconds", "From a request's arrival to its first token",
              &now.first);
    head(out, "pipedec_http_answers_total", "counter", "Answers by code");
    for (int i = 0; i < METRICS_CODES && now.codes[i]; i++) {
        snprintf(code, sizeof code, "%d", now.codes[i]);
        labelled(out, "pipedec_http_answers_total", "code", code, (double)now.answers[i]);
    }
    one(out, "pipedec_http_connections", "gauge", "Connections now", now.connections);
    one(out, "pipedec_http_lost_total", "counter", "Clients that went before their reply had ended",
        (double)now.lost);
    one(out, "pipedec_http_slow_total", "counter", "Clients let go because they did not send or read",
        (double)now.slow);
}
