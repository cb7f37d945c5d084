/* pipedec eval: what a model says of given tokens: the perplexity of a text, or the most probable tokens at each place, to
 * be compared with another program's. The stages compute one after the other, by the same kernels as always. */
#include "cli/cli.h"
#include "model/model.h"
#include "text/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <yyjson.h>

enum { CHUNK = 32, TOP_MAX = 1000, TEXT_MAX = 1 << 30 };
enum {
    KEY_TOKENS = CLI_KEY_OWN,
    KEY_LOGITS,
    KEY_TOP,
    KEY_WINDOW,
    KEY_SKIP,
    KEY_LIMIT,
    KEY_STAGES,
    KEY_KV,
    KEY_JSON
};

struct eval_args {
    const char *model, *text, *tokens;
    int top, window, skip, limit, stages, threads;
    enum pd_kv_type kv;
    bool logits, json, quiet;
};

static const struct argp_option options[] = {
    {"model", 'm', "FILE", 0, "the model", 0},
    {"file", 'f', "TEXT", 0, "a text's file ('-': standard input), read by the model's tokenizer", 0},
    {"tokens", KEY_TOKENS, "FILE", 0,
     "token ids in place of a text: one sequence a line, numbers apart by blanks or commas, brackets ignored",
     0},
    {"logits", KEY_LOGITS, NULL, 0,
     "write the best logits of every position, a JSON line each, in place of the perplexity", 0},
    {"top", KEY_TOP, "K", 0, "so many of them (10)", 0},
    {"window", KEY_WINDOW, "N", 0,
     "a text is cut into windows of N tokens, each begun anew (512, or what the model can)", 0},
    {"skip", KEY_SKIP, "N", 0,
     "the first N tokens of a window do not count: they have little before them (0)", 0},
    {"limit", KEY_LIMIT, "N", 0, "no more than N tokens of the text", 0},
    {"stages", KEY_STAGES, "N", 0, "through N stages (1)", 0},
    {"threads", 't', "N", 0, "threads (the processors)", 0},
    {"kv", KEY_KV, "TYPE", 0, "type of the KV cache: f16 (default), f32, q8_0", 0},
    {"json", KEY_JSON, NULL, 0, "the perplexity as a JSON object", 0},
    {"quiet", 'q', NULL, 0, "no progress", 0},
    {0},
};

static const char doc[] = "Evaluate a model on given text: its perplexity with the standard error, or the "
                          "logits at every position.\v"
                          "The perplexity is e to the mean of -log p of each token after a window's first, "
                          "given those before it in the "
                          "window. Windows of models that want a BOS begin with one. llama.cpp counts the "
                          "second half of its windows "
                          "only: --skip 256 does the same.\n\n"
                          "Examples:\n"
                          "  pipedec eval -m model.gguf -f book.txt --limit 20000\n"
                          "  pipedec eval -m model.gguf -f book.txt --stages 7 --json | jq .perplexity\n"
                          "  echo '1 2 3 4' | pipedec eval -m model.gguf --tokens - --logits --top 5\n";

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct eval_args *a = state->input;
    switch (key) {
    case 'm':
        a->model = arg;
        return 0;
    case 'f':
        a->text = arg;
        return 0;
    case 't':
        a->threads = (int)cli_int(state, "--threads", arg, 1, 512);
        return 0;
    case 'q':
        a->quiet = true;
        return 0;
    case KEY_TOKENS:
        a->tokens = arg;
        return 0;
    case KEY_LOGITS:
        a->logits = true;
        return 0;
    case KEY_TOP:
        a->top = (int)cli_int(state, "--top", arg, 1, TOP_MAX);
        return 0;
    case KEY_WINDOW:
        a->window = (int)cli_int(state, "--window", arg, 2, 1 << 24);
        return 0;
    case KEY_SKIP:
        a->skip = (int)cli_int(state, "--skip", arg, 0, 1 << 24);
        return 0;
    case KEY_LIMIT:
        a->limit = (int)cli_int(state, "--limit", arg, 2, 1 << 30);
        return 0;
    case KEY_STAGES:
        a->stages = (int)cli_int(state, "--stages", arg, 1, STAGES_MAX);
        return 0;
    case KEY_KV:
        a->kv = cli_kv_type(state, arg);
        return 0;
    case KEY_JSON:
        a->json = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s': the model is given by -m, a text by -f", arg);
        return 0;
    case ARGP_KEY_END:
        if (!a->model)
            argp_error(state, "which model? (-m FILE)");
        if (!a->text == !a->tokens)
            argp_error(state, "a text (-f) or token ids (--tokens): one of them");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- the model as a chain of stages ---- */

struct chain {
    struct gguf *gguf;
    struct arena arena;
    struct model_info info;
    int n;
    struct model **model; /* [n] */
    struct kv **kv;       /* [n] */
    float *hidden;        /* [n_embd, CHUNK] */
    float *logits;        /* [n_vocab, CHUNK] */
};

static void chain_close(struct chain *c)
{
    for (int i = 0; i < c->n; i++) {
        kv_free(c->kv[i]);
        model_free(c->model[i]);
    }
    free(c->kv);
    free(c->model);
    free(c->hidden);
    free(c->logits);
    gguf_close(c->gguf);
    arena_free(&c->arena);
}

static enum pd_status chain_load(struct chain *c, const struct eval_args *a, int ctx, struct pd_error *err)
{
    int first[STAGES_MAX + 1];
    enum pd_status status = model_cut(&c->info, a->stages, first, err);
    c->model = mem_new((size_t)a->stages, sizeof(struct model *));
    c->kv = mem_new((size_t)a->stages, sizeof(struct kv *));
    for (; !status && c->n < a->stages; c->n++) {
        const int i = c->n;
        struct model_options o = {.layer_first = first[i],
                                  .layer_count = first[i + 1] - first[i],
                                  .embed = i == 0,
                                  .head = i == a->stages - 1,
                                  .threads = a->threads ? a->threads : PD_MIN(get_nprocs(), 64),
                                  .ctx = ctx,
                                  .tree_rows = 1,
                                  .chunk_rows = CHUNK + 1, /* no quicker kernels whose bits are the chunk's */
                                  .kv_type = a->kv};
        if (!(status = model_load(&c->model[i], c->gguf, &o, err)) &&
            (status = kv_new(&c->kv[i], c->model[i], err)))
            model_free(c->model[i]);
        if (status)
            break;
    }
    c->hidden = mem_new((size_t)CHUNK * (size_t)c->info.n_embd, sizeof(float));
    c->logits = mem_new((size_t)CHUNK * (size_t)c->info.n_vocab, sizeof(float));
    return status;
}

/* Logits behind each of n tokens from `pos` on, into c->logits. */
static enum pd_status chain_run(struct chain *c, const int32_t *ids, int pos, int n, struct pd_error *err)
{
    struct row rows[CHUNK];
    enum pd_status status = PD_OK;
    for (int i = 0; i < n; i++)
        rows[i] = (struct row){.token = ids[i], .pos = pos + i};
    for (int i = 0; i < c->n && !status; i++)
        status = model_run(c->model[i], c->kv[i], rows, n, c->hidden, MODEL_PREFILL, err);
    return status ? status : model_head(c->model[c->n - 1], c->hidden, n, c->logits, err);
}

static void chain_rewind(struct chain *c)
{
    for (int i = 0; i < c->n; i++)
        kv_truncate(c->kv[i], 0);
}

/* ---- what is evaluated ---- */

struct sequences {
    struct token_list ids, end; /* one after the other, and where each ends */
};

static size_t begin_of(const struct sequences *s, size_t k)
{
    return k ? (size_t)s->end.ids[k - 1] : 0;
}

static enum pd_status add_end(struct sequences *s, struct pd_error *err)
{
    const bool empty = s->ids.count == begin_of(s, s->end.count);
    return empty ? PD_OK : token_list_add(&s->end, (int32_t)s->ids.count, err);
}

static enum pd_status parse_ids(struct sequences *s, const char *text, int n_vocab, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    int line = 1;
    for (const char *p = text; *p && !status;) {
        char *end;
        if (*p == '\n') {
            line++;
            status = add_end(s, err);
        }
        if (strchr(" \t\r\n,[]", *p)) {
            p++;
            continue;
        }
        const long id = strtol(p, &end, 10);
        if (end == p || id < 0 || id >= n_vocab)
            return error_set(err, PD_ERR_USAGE, "line %d: '%.12s' is no token of this model (0 to %d)", line,
                             p, n_vocab - 1);
        status = token_list_add(&s->ids, (int32_t)id, err);
        p = end;
    }
    return status ? status : add_end(s, err);
}

/* Windows of a text, each with the BOS that the model wants. */
static enum pd_status cut_text(struct sequences *s, const struct eval_args *a, const struct chain *c,
                               const struct text_buf *text, struct pd_error *err)
{
    const int window = PD_MIN(a->window, PD_MAX(c->info.ctx_train, 2));
    struct tokenizer *t;
    struct token_list all = {0};
    enum pd_status status = tokenizer_new(&t, c->gguf, err);
    if (status)
        return status;
    status = tokenizer_encode(t, text->data, text->size, 0, &all, err);
    const bool bos = tokenizer_adds_bos(t);
    const size_t n = a->limit ? PD_MIN(all.count, (size_t)a->limit) : all.count;
    for (size_t i = 0; i < n && !status;) {
        size_t taken = PD_MIN(n - i, (size_t)(window - bos));
        if (bos)
            status = token_list_add(&s->ids, tokenizer_bos(t), err);
        for (size_t end = i + taken; i < end && !status; i++)
            status = token_list_add(&s->ids, all.ids[i], err);
        if (!status)
            status = add_end(s, err);
    }
    token_list_free(&all);
    tokenizer_free(t);
    return status;
}

/* ---- what comes out ---- */

struct score { /* of -log p, in nats */
    double sum, squares;
    int64_t n;
};

static void add_score(struct score *s, const float *logits, int n_vocab, int32_t token)
{
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < n_vocab; i++)
        top = fmax(top, (double)logits[i]);
    for (int i = 0; i < n_vocab; i++)
        sum += exp((double)logits[i] - top);
    const double nats = log(sum) + top - (double)logits[token];
    s->sum += nats;
    s->squares += nats * nats;
    s->n++;
}

/* The k best, best first; the lower id of equal ones. */
static int best_of(const float *logits, int n, int k, int32_t *out)
{
    int kept = 0;
    for (int i = 0; i < n; i++) {
        int at = kept;
        while (at > 0 && logits[i] > logits[out[at - 1]])
            at--;
        if (at == k)
            continue;
        kept = PD_MIN(kept + 1, k);
        memmove(&out[at + 1], &out[at], (size_t)(kept - at - 1) * sizeof *out);
        out[at] = i;
    }
    return kept;
}

struct place {
    size_t sequence, pos;
    int32_t token;
};

static void print_logits(const struct place *at, const float *logits, int n_vocab, int top)
{
    int32_t best[TOP_MAX];
    const int n = best_of(logits, n_vocab, PD_MIN(top, n_vocab), best);
    printf("{\"sequence\": %zu, \"pos\": %zu, \"token\": %d, \"top\": [", at->sequence, at->pos, at->token);
    for (int i = 0; i < n; i++)
        printf("%s[%d, %.9g]", i ? ", " : "", best[i], (double)logits[best[i]]);
    puts("]}");
}

static enum pd_status evaluate(struct chain *c, const struct eval_args *a, const struct sequences *s,
                               struct score *score, struct pd_error *err)
{
    size_t done = 0;
    const int n_vocab = c->info.n_vocab;
    for (size_t k = 0; k < s->end.count; k++) {
        const int32_t *ids = s->ids.ids + begin_of(s, k);
        const int n = (int)(begin_of(s, k + 1) - begin_of(s, k)),
                  last = a->logits ? n : n - 1; /* nothing is foretold by the last */
        chain_rewind(c);
        for (int at = 0; at < last; at += CHUNK) {
            const int rows = PD_MIN(CHUNK, last - at);
            enum pd_status status = chain_run(c, ids + at, at, rows, err);
            if (status)
                return status;
            for (int i = 0; i < rows; i++) {
                const float *logits = c->logits + (size_t)i * (size_t)n_vocab;
                if (a->logits)
                    print_logits(&(struct place){k, (size_t)(at + i), ids[at + i]}, logits, n_vocab, a->top);
                else if (at + i + 1 > a->skip)
                    add_score(score, logits, n_vocab, ids[at + i + 1]);
            }
            done += (size_t)rows;
            if (!a->quiet)
                cli_progress(NULL, "evaluating", (int64_t)done, (int64_t)s->ids.count);
        }
    }
    return PD_OK;
}

static void print_score(const struct score *s, const struct sequences *of, bool json)
{
    const double mean = s->sum / (double)s->n;
    const double variance = s->n > 1 ? PD_MAX(s->squares / (double)s->n - mean * mean, 0) : 0;
    const double error = s->n > 1 ? sqrt(variance / (double)(s->n - 1)) : 0;
    if (json)
        printf(
            "{\"perplexity\": %.9g, \"error\": %.6g, \"nats\": %.9g, \"tokens\": %lld, \"windows\": %zu}\n",
            exp(mean), exp(mean) * error, mean, (long long)s->n, of->end.count);
    else
        printf("perplexity %.4f +- %.4f (%.5f nats a token, %lld tokens in %zu windows)\n", exp(mean),
               exp(mean) * error, mean, (long long)s->n, of->end.count);
}

static enum pd_status gather(struct sequences *s, const struct eval_args *a, const struct chain *c, int *ctx,
                             struct pd_error *err)
{
    struct text_buf text = {0};
    enum pd_status status =
        cli_read_file(a->text ? a->text : a->tokens, TEXT_MAX, &text.data, &text.size, err);
    if (!status)
        status = a->tokens ? parse_ids(s, text.data, c->info.n_vocab, err) : cut_text(s, a, c, &text, err);
    free(text.data);
    size_t longest = 0;
    for (size_t i = 0; i < s->end.count; i++)
        longest = PD_MAX(longest, begin_of(s, i + 1) - begin_of(s, i));
    if (!status && longest > (size_t)PD_MAX(c->info.ctx_train, 2))
        status = error_set(err, PD_ERR_CONTEXT, "a sequence of %zu tokens: the model was made for %d",
                           longest, c->info.ctx_train);
    if (!status && longest < (a->logits ? 1 : 2))
        status = error_set(err, PD_ERR_USAGE, "nothing to evaluate: %s has %zu tokens",
                           a->text ? a->text : a->tokens, s->ids.count);
    *ctx = (int)longest;
    return status;
}

int cmd_eval(int argc, char **argv)
{
    static const struct argp argp = {options, parse_option, "-m MODEL -f TEXT | --tokens FILE", doc, NULL,
                                     NULL,    NULL};
    struct eval_args a = {.top = 10, .window = 512, .stages = 1, .kv = PD_KV_F16};
    struct pd_error err = {0};
    struct chain c = {0};
    struct sequences s = {0};
    struct score score = {0};
    int ctx = 0;
    cli_parse(&argp, argc, argv, &a);
    enum pd_status status = gguf_open(&c.gguf, a.model, &err);
    if (!status)
        status = model_describe(&c.info, c.gguf, &c.arena, &err);
    if (!status)
        status = gather(&s, &a, &c, &ctx, &err);
    if (!status)
        status = chain_load(&c, &a, ctx, &err);
    if (!status)
        status = evaluate(&c, &a, &s, &score, &err);
    cli_progress_end();
    if (!status && !a.logits && !score.n)
        status = error_set(&err, PD_ERR_USAGE, "no token counts: --skip %d leaves none of a window", a.skip);
    if (!status && !a.logits)
        print_score(&score, &s, a.json);
    if (!status && fflush(stdout))
        status = error_set(&err, PD_ERR_FILE, "standard output cannot be written");
    token_list_free(&s.ids);
    token_list_free(&s.end);
    chain_close(&c);
    return status ? cli_fail(&err) : PD_OK;
}
