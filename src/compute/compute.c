/* Computing by models. A stage is a model of a few layers and its kv; the last one has the head too. The draft is a
 * model of all its layers. Nothing here knows about trees or time. */
#include "compute/compute.h"
#include "compute/head_grammar.h"
#include "compute/vocab.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

enum {
    HEAD_SLICE = 32 /* rows of the draft's head at once: their logits are 20 MB for a large vocabulary */
};

struct part { /* a model and its kv; a stage or the draft */
    struct model *model;
    struct kv *kv[LANES_MAX]; /* by lane */
    int lanes;
    struct sample_scratch *scratch;
    struct vocab *vocab;   /* the target's; the last stage and the draft */
    float *logits;         /* [n_vocab, slice]; the last stage and the draft */
    float *hidden;         /* [n_embd, batch_rows] of the draft, [n_embd, head_rows] of the last stage */
    int head_rows;         /* that the last stage's head computes at once */
    struct row *rows;      /* [batch_rows]; the draft */
    float *sorted;         /* [n_embd, BATCH_ROWS] hidden states by lane, where lanes are more than one */
    int n_vocab;           /* of this model */
    int n_vocab_ranked;    /* tokens that the target knows too */
    struct vocab_map *map; /* the draft, where its vocabulary is not the target's; else NULL */
    float *mapped;         /* [n_vocab_ranked] if there is a map */
    float spread;
    bool digesting;  /* the last stage: hash the bits of all logits that are sampled from */
    uint64_t digest; /* so far */
    struct compute_self *owner;
    struct head_grammars grammars; /* the last stage */
};

struct compute_self {
    struct compute_info info;
    struct arena arena;
    struct gguf *target, *draft; /* what was opened here, else NULL */
    struct vocab *vocab;
    struct part stage[STAGES_MAX];
    struct part drafter;
    int loaded, to_load;
    pthread_mutex_t lock; /* over what follows, made when the first grammar comes */
    struct grammar_vocab *grammar_vocab;
    const struct tokenizer *tokenizer; /* borrowed; NULL: to be made of the target's file */
    bool any_pre;
};

void compute_options_init(struct compute_options *o)
{
    *o = (struct compute_options){.n_stages = 1, .ctx = 4096, .only_role = COMPUTE_ALL};
}

int compute_threads(int stages, uint64_t bytes, bool alone)
{
    const uint64_t small = 24 << 20; /* a few milliseconds for one core, with dozens of barriers on the way */
    const int cores = get_nprocs();
    if (bytes / (uint64_t)stages < small)
        return 1;
    return alone || stages >= cores ? cores
                                    : cores / stages; /* more stages than cores: they take turns (gate.c) */
}

void compute_rss(uint64_t *now, uint64_t *peak)
{
    struct rusage usage = {0};
    unsigned long long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f) {
        if (fscanf(f, "%llu %llu", &total, &resident) != 2)
            resident = 0;
        fclose(f);
    }
    getrusage(RUSAGE_SELF, &usage);
    *now = resident * (uint64_t)sysconf(_SC_PAGESIZE);
    *peak = (uint64_t)usage.ru_maxrss * 1024;
}

/* ---- a stage ---- */

/* A batch by lane: rows[i] is row order[i] of the job, spans are in their order. */
struct by_lane {
    struct row rows[BATCH_ROWS];
    int order[BATCH_ROWS];
    struct model_span spans[2 * LANES_MAX];
    int n_spans;
    bool moved; /* not in the job's order */
};

static void sort_by_lane(struct by_lane *to, const struct part *p, const struct row *rows, int n,
                         int n_prompt)
{
    static const enum model_kind kinds[2] = {MODEL_PREFILL, MODEL_TREE};
    int count[LANES_MAX][2] = {{0}}, at[LANES_MAX];
    *to = (struct by_lane){.n_spans = 0};
    for (int i = 0; i < n; i++)
        count[rows[i].lane][i >= n_prompt]++;
    for (int lane = 0, next = 0; lane < p->lanes; lane++) {
        at[lane] = next;
        for (int kind = 0; kind < 2; kind++)
            if (count[lane][kind])
                to->spans[to->n_spans++] = (struct model_span){p->kv[lane], count[lane][kind], kinds[kind]};
        next += count[lane][0] + count[lane][1];
    }
    for (int i = 0; i < n; i++) {
        int place = at[rows[i].lane]++;
        to->rows[place] = rows[i];
        to->order[place] = i;
        to->moved |= place != i;
    }
}

/* Rows of any lanes, in one pass. */
static enum pd_status run_rows(struct part *p, const struct row *rows, int n, int n_prompt, float *hidden,
                               struct pd_error *err)
{
    const size_t width = (size_t)model_info(p->model)->n_embd;
    struct by_lane b;
    sort_by_lane(&b, p, rows, n, n_prompt);
    if (!b.moved)
        return model_run_spans(p->model, b.spans, b.n_spans, rows, hidden, err);
    for (int i = 0; i < n; i++)
        memcpy(p->sorted + (size_t)i * width, hidden + (size_t)b.order[i] * width, width * sizeof *hidden);
    enum pd_status status = model_run_spans(p->model, b.spans, b.n_spans, b.rows, p->sorted, err);
    for (int i = 0; i < n && !status; i++)
        memcpy(hidden + (size_t)b.order[i] * width, p->sorted + (size_t)i * width, width * sizeof *hidden);
    return status;
}

static enum pd_status stage_run(void *self, const struct stage_job *job, struct pd_error *err)
{
    struct part *p = self;
    model_set_stop(p->model, job->stop, job->stop_user);
    enum pd_status status = run_rows(p, job->rows, job->n, job->n_prompt, job->hidden, err);
    model_set_stop(p->model, NULL, NULL);
    return status;
}

static void part_kv(void *self, const struct kv_job *job)
{
    struct kv *kv = ((struct part *)self)->kv[job->lane];
    for (int i = 0; i < job->n_commit; i++)
        kv_commit(kv, job->commit[i]);
    kv_drop(kv, job->drop, job->n_drop);
}

static void part_keep(void *self, int lane, int keep)
{
    kv_truncate(((struct part *)self)->kv[lane], keep);
}

static void part_copy(void *self, int lane, int from, int keep)
{
    struct part *p = self;
    kv_copy(p->kv[lane], p->kv[from], keep);
}

static int part_tree_rows(void *self)
{
    const struct part *p = self;
    int n = 0;
    for (int i = 0; i < p->lanes; i++)
        n += kv_tree_rows(p->kv[i]);
    return n;
}

/* Several chains, since it is done for each token: a large vocabulary takes some 30 us. */
static uint64_t digest_floats(uint64_t seed, const float *x, int n)
{
    uint64_t chain[4] = {seed, 1, 2, 3};
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        chain[i % 4] = (chain[i % 4] ^ bits) * 0x9e3779b97f4a7c15u;
        chain[i % 4] ^= chain[i % 4] >> 29;
    }
    return hash_bytes(seed, chain, sizeof chain);
}

/* ---- grammars ---- */

struct looked {
    const struct tokenizer *t;
    int n_vocab, ends;
};

static enum grammar_token_kind look(void *user, int32_t id, const char **bytes, size_t *size)
{
    struct looked *l = user;
    *bytes = tokenizer_piece(l->t, id, size);
    if (tokenizer_is_end(l->t, id)) /* as many as a request may have */
        return l->ends++ < END_TOKENS_MAX ? GRAMMAR_END : GRAMMAR_UNUSED;
    return tokenizer_is_control(l->t, id) ? GRAMMAR_CONTROL : GRAMMAR_TEXT;
}

static enum pd_status make_vocab(struct compute_self *s, struct pd_error *err)
{
    struct tokenizer *own = NULL;
    enum pd_status status = PD_OK;
    if (!s->tokenizer)
        status = tokenizer_new_for(&own, s->info.target_file, s->any_pre, err);
    if (status)
        return status;
    struct looked l = {.t = s->tokenizer ? s->tokenizer : own};
    s->grammar_vocab = grammar_vocab_new(
        &(struct grammar_vocab_options){.n_vocab = s->info.target.n_vocab, .token = look, .user = &l});
    tokenizer_free(own);
    return PD_OK;
}

static enum pd_status self_vocab(struct compute_self *s, const struct grammar_vocab **out,
                                 struct pd_error *err)
{
    pthread_mutex_lock(&s->lock);
    enum pd_status status = s->grammar_vocab ? PD_OK : make_vocab(s, err);
    *out = s->grammar_vocab;
    pthread_mutex_unlock(&s->lock);
    return status;
}

enum pd_status compute_vocab(const struct compute *c, const struct grammar_vocab **out, struct pd_error *err)
{
    PD_ASSERT(compute_info(c));
    return self_vocab(c->self, out, err);
}

static enum pd_status sample_head(struct part *p, const struct head_job *job, int i, const float *logits,
                                  struct pd_error *err)
{
    const struct head_row *r = &job->rows[i];
    const uint32_t *allowed = NULL;
    const struct grammar_vocab *vocab = NULL;
    enum pd_status status = r->n_grammar ? self_vocab(p->owner, &vocab, err) : PD_OK;
    if (status || (status = head_grammar_mask(&p->grammars, vocab, r, &allowed, err)))
        return status;
    const int32_t n = r->pos + 1;
    const struct sample_job s = {.sampling = r->sample,
                                 .logits = logits,
                                 .history = {.base = r->history, .n_base = n},
                                 .n_reply = PD_MAX(n - r->reply_pos, 0),
                                 .pos = n,
                                 .allowed = allowed,
                                 .texts = vocab_texts(p->vocab, r->sample)};
    if (p->digesting)
        p->digest = digest_floats(p->digest, logits, p->n_vocab);
    job->tokens[i] = sample_token(&s, p->scratch);
    if (r->n_top >= 0 && job->probs)
        sample_logprobs(logits, job->tokens[i], r->n_top, p->scratch, &job->probs[i]);
    return PD_OK;
}

/* Several rows share each load of the head's weights. */
static enum pd_status head_run(void *self, const struct head_job *job, struct pd_error *err)
{
    struct part *p = self;
    const size_t n_embd = (size_t)model_info(p->model)->n_embd;
    for (int from = 0; from < job->n; from += p->head_rows) {
        const int n = PD_MIN(p->head_rows, job->n - from);
        for (int i = 0; i < n; i++)
            memcpy(p->hidden + (size_t)i * n_embd, job->rows[from + i].hidden, n_embd * sizeof(float));
        enum pd_status status = model_head(p->model, p->hidden, n, p->logits, err);
        if (status)
            return status;
        for (int i = 0; i < n && !status; i++)
            status = sample_head(p, job, from + i, p->logits + (size_t)i * (size_t)p->n_vocab, err);
        if (status)
            return status;
    }
    return PD_OK;
}

/* ---- the draft ---- */

/* Tokens by the draft's numbers. One beyond its vocabulary (padding that the target chose all the same) is as good as any
 * other. */
static const struct row *known_tokens(struct part *p, const struct row *rows, int n)
{
    memcpy(p->rows, rows, (size_t)n * sizeof *rows);
    for (int i = 0; i < n; i++) {
        int32_t *token = &p->rows[i].token;
        if (p->map)
            *token = *token < p->map->n ? p->map->to_draft[*token] : 0;
        if (*token >= p->n_vocab)
            *token = 0;
    }
    return p->rows;
}

/* A row's logits by the target's numbers: what has no equal is never proposed. */
static const float *targets_logits(struct part *p, const float *logits)
{
    if (!p->map)
        return logits;
    for (int i = 0; i < p->n_vocab_ranked; i++)
        p->mapped[i] = -INFINITY;
    for (int32_t i = 0; i < p->map->n_pairs; i++) {
        const struct vocab_pair pair = p->map->pairs[i];
        if (pair.draft < p->n_vocab && pair.target < p->n_vocab_ranked)
            p->mapped[pair.target] = logits[pair.draft];
    }
    return p->mapped;
}

/* Candidates after wanted row `i` of the pass. */
static void rank_row(struct part *p, const struct draft_job *job, int i, const float *logits)
{
    const struct draft_ask *ask = &job->asks[i];
    const int32_t pos = job->rows[job->n_behind + i].pos + 1;
    const struct sample_job s = {.sampling = ask->sample,
                                 .logits = targets_logits(p, logits),
                                 .history = ask->history,
                                 .n_reply = PD_MAX(pos - ask->reply_pos, 0),
                                 .pos = pos,
                                 .allowed = ask->grammar && grammar_alive(ask->grammar, ask->state)
                                                ? grammar_mask(ask->grammar, ask->state)
                                                : NULL,
                                 .texts = vocab_texts(p->vocab, ask->sample)};
    const struct sample_ranking r = {.spread = p->spread,
                                     .k = job->k,
                                     .tokens = job->tokens + (size_t)i * (size_t)job->k,
                                     .logp = job->logp + (size_t)i * (size_t)job->k};
    job->count[i] = sample_rank(&s, &r, p->scratch);
}

static enum pd_status rank_rows(struct part *p, const struct draft_job *job, struct pd_error *err)
{
    const size_t n_embd = (size_t)model_info(p->model)->n_embd;
    for (int from = job->n_behind; from < job->n; from += HEAD_SLICE) {
        int slice = PD_MIN(HEAD_SLICE, job->n - from);
        enum pd_status status =
            model_head(p->model, p->hidden + (size_t)from * n_embd, slice, p->logits, err);
        if (status)
            return status;
        for (int i = 0; i < slice; i++) {
            if (job->stop && job->stop(job->stop_user))
                return error_set(err, PD_ERR_CANCELLED, "stopped");
            rank_row(p, job, from + i - job->n_behind, p->logits + (size_t)i * (size_t)p->n_vocab);
        }
    }
    return PD_OK;
}

static enum pd_status draft_run(void *self, const struct draft_job *job, struct pd_error *err)
{
    struct part *p = self;
    const struct row *rows = known_tokens(p, job->rows, job->n);
    model_set_stop(p->model, job->stop, job->stop_user);
    enum pd_status status = run_rows(p, rows, job->n, job->prefill ? job->n : 0, p->hidden, err);
    bool computed = !status;
    if (!status && !job->prefill && job->n > job->n_behind)
        status = rank_rows(p, job, err);
    for (int i = 0; i < job->n && status && computed; i++) /* nothing of a stopped pass is kept */
        kv_drop(p->kv[rows[i].lane], &rows[i].node, 1);
    model_set_stop(p->model, NULL, NULL);
    return status;
}

/* ---- building ---- */

static enum pd_status part_load(struct part *p, const struct gguf *g, const struct model_options *o,
                                int lanes, struct pd_error *err)
{
    enum pd_status status = model_load(&p->model, g, o, err);
    for (p->lanes = 0; !status && p->lanes < lanes; p->lanes += !status)
        status = kv_new(&p->kv[p->lanes], p->model, err);
    if (status)
        return status;
    p->n_vocab = p->n_vocab_ranked = model_info(p->model)->n_vocab;
    if (lanes > 1)
        p->sorted = mem_new((size_t)BATCH_ROWS * (size_t)model_info(p->model)->n_embd, sizeof *p->sorted);
    return PD_OK;
}

static enum pd_status part_add_head(struct part *p, int slice, struct pd_error *err)
{
    p->logits = mem_try((size_t)p->n_vocab * (size_t)slice, sizeof *p->logits);
    if (!p->logits)
        return error_set(err, PD_ERR_MEMORY, "no memory for the logits of %d rows", slice);
    p->scratch = sample_scratch_new(p->n_vocab_ranked);
    return PD_OK;
}

static void part_free(struct part *p)
{
    for (int i = 0; i < p->lanes; i++)
        kv_free(p->kv[i]);
    model_free(p->model);
    vocab_map_free(p->map);
    free(p->mapped);
    sample_scratch_free(p->scratch);
    head_grammars_free(&p->grammars);
    free(p->logits);
    free(p->hidden);
    free(p->rows);
    free(p->sorted);
}

static void compute_self_free(struct compute *c)
{
    struct compute_self *s = c->self;
    for (int i = 0; i < STAGES_MAX; i++)
        part_free(&s->stage[i]);
    part_free(&s->drafter);
    vocab_free(s->vocab);
    grammar_vocab_free(s->grammar_vocab);
    pthread_mutex_destroy(&s->lock);
    gguf_close(s->target);
    gguf_close(s->draft);
    arena_free(&s->arena);
    free(s);
}

void compute_free(struct compute *c)
{
    if (c->free)
        c->free(c);
    *c = (struct compute){0};
}

const struct compute_info *compute_info(const struct compute *c)
{
    return c->free == compute_self_free ? &((struct compute_self *)c->self)->info : NULL;
}

struct marking {
    const struct gguf *file;
    bool *wanted;
};

static void mark(void *user, const char *name)
{
    const struct marking *m = user;
    for (size_t i = 0; i < gguf_tensor_count(m->file); i++)
        if (strcmp(gguf_tensor_at(m->file, i)->name, name) == 0)
            m->wanted[i] = true;
}

void compute_tensors(const struct compute *c, bool *wanted)
{
    const struct compute_self *s = c->self;
    struct marking m = {s->info.target_file, wanted};
    for (int i = 0; i < c->n_stages; i++)
        if (s->stage[i].model)
            model_each_tensor(s->stage[i].model, mark, &m);
}

/* The stage that has the head; NULL: it was not built here. */
static struct part *head_part(const struct compute *c)
{
    if (c->free != compute_self_free)
        return NULL;
    struct compute_self *s = c->self;
    struct part *last = &s->stage[c->n_stages - 1];
    return last->logits ? last : NULL;
}

bool compute_digest_logits(struct compute *c)
{
    struct part *last = head_part(c);
    if (last)
        last->digesting = true;
    return last != NULL;
}

bool compute_logits_digest(const struct compute *c, uint64_t *out)
{
    const struct part *last = head_part(c);
    if (!last || !last->digesting)
        return false;
    *out = last->digest;
    return true;
}

/* A part on its way: whole parts before it, and a share of its own. */
struct loading {
    const struct compute_self *s;
    const struct compute_options *o;
};

static void on_share(void *user, double share)
{
    const struct loading *l = user;
    if (l->o->on_part)
        l->o->on_part(l->o->on_part_user, (int)(100 * (l->s->loaded + share) / l->s->to_load), 100);
}

static void part_loaded(struct compute_self *s, const struct compute_options *o)
{
    s->loaded++;
    on_share(&(struct loading){s, o}, 0);
}

static bool wanted(const struct compute_options *o, int role)
{
    return o->only_role == COMPUTE_ALL || o->only_role == role;
}

/* The stages of a process differ only in whether ggml multiplies with some tensors. */
static void note_kernels(struct kernels_used *all, const struct model *m)
{
    struct kernels_used used;
    model_kernels_used(m, &used);
    if (!all->ggml[0])
        memcpy(all->ggml, used.ggml, sizeof all->ggml);
    all->own = used.own;
    memcpy(all->variant, used.variant, sizeof all->variant);
}

static enum pd_status load_stage(struct compute *c, int i, const struct gguf *g,
                                 const struct compute_options *o, struct pd_error *err)
{
    struct compute_self *s = c->self;
    struct part *p = &s->stage[i];
    const bool last = i == o->n_stages - 1;
    struct model_options mo = {
        .layer_first = s->info.first[i],
        .layer_count = s->info.first[i + 1] - s->info.first[i],
        .embed = i == 0,
        .head = last,
        .device = s->info.devices.stage[i],
        .threads = s->info.threads,
        .ctx = o->ctx,
        .tree_rows = o->tree_rows,
        .batch_rows = o->batch_rows ? o->batch_rows : BATCH_ROWS,
        .chunk_rows = CHUNK_ROWS,
        .kv_type = o->kv_type,
        .window_back = o->window_back,
        .no_pack = o->no_pack,
        .on_pack = on_share,
        .on_pack_user = &(struct loading){s, o},
    };
    enum pd_status status = part_load(p, g, &mo, PD_MAX(o->lanes, 1), err);
    if (!status && last) {
        p->owner = s;
        p->head_rows = PD_MIN(PD_MIN(PD_MAX(o->lanes, 1), HEAD_SLICE), mo.batch_rows);
        p->hidden = mem_new((size_t)p->head_rows * (size_t)s->info.target.n_embd, sizeof *p->hidden);
        status = part_add_head(p, p->head_rows, err);
    }
    if (status)
        return status;
    note_kernels(&s->info.kernels, p->model);
    c->stage[i] = (struct stage_ops){.self = p,
                                     .n_embd = s->info.target.n_embd,
                                     .elsewhere = !s->info.devices.stage[i]->host,
                                     .run = stage_run,
                                     .kv = part_kv,
                                     .keep = part_keep,
                                     .copy = part_copy,
                                     .tree_rows = part_tree_rows};
    p->vocab = s->vocab;
    if (last)
        c->head = (struct head_ops){.self = p, .run = head_run};
    part_loaded(s, o);
    return PD_OK;
}

static enum pd_status load_draft(struct compute *c, const struct gguf *g, const struct compute_options *o,
                                 struct pd_error *err)
{
    struct compute_self *s = c->self;
    struct part *p = &s->drafter;
    const int batch = o->batch_rows ? o->batch_rows : BATCH_ROWS;
    struct model_options mo = {
        .layer_count = s->info.draft.n_layer,
        .embed = true,
        .head = true,
        .device = s->info.devices.draft,
        .threads = s->info.draft_threads,
        .ctx = o->ctx,
        .tree_rows = o->draft_tree_rows ? o->draft_tree_rows : 4096,
        .batch_rows = batch,
        .kv_type = o->kv_type,
        .no_pack = o->no_pack,
        .on_pack = on_share,
        .on_pack_user = &(struct loading){s, o},
        .fast = true, /* a prediction need not be the same everywhere */
    };
    enum pd_status status = part_load(p, g, &mo, PD_MAX(o->lanes, 1), err);
    if (status)
        return status;
    p->n_vocab_ranked = p->map ? s->info.target.n_vocab : PD_MIN(p->n_vocab, s->info.target.n_vocab);
    if (p->map)
        p->mapped = mem_new((size_t)p->n_vocab_ranked, sizeof *p->mapped);
    p->spread = o->spread > 0 ? o->spread : 0.8f; /* the draft is under-confident: docs/design.md */
    p->vocab = s->vocab;
    p->rows = mem_new((size_t)batch, sizeof *p->rows);
    p->hidden = mem_new((size_t)batch * (size_t)s->info.draft.n_embd, sizeof *p->hidden);
    if ((status = part_add_head(p, PD_MIN(HEAD_SLICE, batch), err)))
        return status;
    c->draft = (struct draft_ops){.self = p,
                                  .prefill_rows = PD_MIN(CHUNK_ROWS, batch),
                                  .elsewhere = !s->info.devices.draft->host,
                                  .run = draft_run,
                                  .kv = part_kv,
                                  .keep = part_keep,
                                  .copy = part_copy,
                                  .tree_rows = part_tree_rows};
    part_loaded(s, o);
    return PD_OK;
}

/* Memory is mapped on first touch, so a context that can never fit would fail late, by the kernel's hand. */
static enum pd_status check_host(const struct compute_self *s, const struct place_need *n,
                                 const struct compute_options *o, struct pd_error *err)
{
    struct sysinfo machine;
    if (sysinfo(&machine) != 0)
        return PD_OK;
    double have = ((double)machine.totalram + (double)machine.totalswap) * machine.mem_unit, need = 0;
    for (int i = 0; i <= o->n_stages; i++) {
        const bool draft = i == o->n_stages;
        const struct device *d = draft ? s->info.devices.draft : s->info.devices.stage[i];
        if (d->host && wanted(o, draft ? ROLE_DRAFTER : role_stage(i)) && (!draft || n->draft))
            need += place_bytes(n, i).kv;
    }
    if (need <= have)
        return PD_OK;
    return error_set(err, PD_ERR_MEMORY,
                     "out of memory: a context of %d needs %.1f GB of K/V, this machine has %.1f GB; give a "
                     "smaller --ctx",
                     o->ctx, need / 1e9, have / 1e9);
}

static enum pd_status check_memory(const struct compute_self *s, const struct compute_options *o,
                                   struct pd_error *err)
{
    const struct compute_info *i = &s->info;
    const struct place_need n = {.target = &i->target,
                                 .draft = i->draft.arch ? &i->draft : NULL,
                                 .first = i->first,
                                 .n_stages = o->n_stages,
                                 .only_role = o->only_role,
                                 .ctx = o->ctx,
                                 .lanes = o->lanes,
                                 .tree_rows = o->tree_rows ? o->tree_rows : 1024,
                                 .draft_tree_rows = o->draft_tree_rows ? o->draft_tree_rows : 4096,
                                 .batch_rows = o->batch_rows ? o->batch_rows : BATCH_ROWS,
                                 .kv_type = o->kv_type,
                                 .window_back = o->window_back};
    enum pd_status status = check_host(s, &n, o, err);
    return status ? status : place_check(&i->devices, &n, err);
}

static enum pd_status place(struct compute_self *s, const struct compute_options *o, struct pd_error *err)
{
    const struct place_options po = {.devices = o->devices,
                                     .draft_device = o->draft_device,
                                     .n_stages = o->n_stages,
                                     .only_role = o->only_role};
    if (!device_cpu())
        return error_set(err, PD_ERR_UNSUPPORTED,
                         "ggml's CPU backend was not found; install it or set GGML_BACKEND_PATH");
    enum pd_status status = place_parse(&s->info.devices, &po, err);
    const struct device *d = status ? NULL : place_inexact(&s->info.devices, o->n_stages);
    if (d && o->exact)
        return error_set(err, PD_ERR_USAGE,
                         "the bits of %s depend on the batch, so it can't go with --exact; see docs/gpu.md",
                         d->name);
    return status;
}

static enum pd_status open_files(struct compute_self *s, const struct compute_options *o,
                                 const struct gguf **target, const struct gguf **draft, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    *target = o->target_gguf;
    *draft = o->draft_gguf;
    if (!*target) {
        status = gguf_open(&s->target, o->target, err);
        *target = s->target;
    }
    if (!status && !*draft && o->draft) {
        status = gguf_open(&s->draft, o->draft, err);
        *draft = s->draft;
    }
    if (!status)
        status = model_describe(&s->info.target, *target, &s->arena, err);
    if (!status && *draft)
        status = model_describe(&s->info.draft, *draft, &s->arena, err);
    return status;
}

static enum pd_status match_vocab(struct compute_self *s, const struct gguf *target, const struct gguf *draft,
                                  const struct compute_options *o, struct pd_error *err)
{
    const struct vocab_files files = {target, draft, o->tokenizer, o->allow_unknown_tokenizer};
    return vocab_match(&s->drafter.map, &files, err);
}

static enum pd_status cut(const struct model_info *info, const struct compute_options *o, int *first,
                          struct pd_error *err)
{
    if (o->n_stages > STAGES_MAX)
        return error_set(err, PD_ERR_STAGES, "%d stages: no more than %d are possible", o->n_stages,
                         STAGES_MAX);
    return o->layers ? model_cut_as(info, o->layers, o->n_stages, first, err)
                     : model_cut(info, o->n_stages, first, err);
}

enum pd_status compute_needs(bool *needed, const struct gguf *g, const struct compute_options *o,
                             struct pd_error *err)
{
    struct arena arena = {0};
    struct model_info info;
    int first[STAGES_MAX + 1];
    enum pd_status status = model_describe(&info, g, &arena, err);
    if (!status)
        status = cut(&info, o, first, err);
    for (int i = 0; i < o->n_stages && !status; i++)
        if (wanted(o, role_stage(i)))
            status = model_needs(needed, g,
                                 &(struct model_options){.layer_first = first[i],
                                                         .layer_count = first[i + 1] - first[i],
                                                         .embed = i == 0,
                                                         .head = i == o->n_stages - 1},
                                 err);
    arena_free(&arena);
    return status;
}

static enum pd_status load_all(struct compute *c, const struct compute_options *o, struct pd_error *err)
{
    struct compute_self *s = c->self;
    const struct gguf *target, *draft;
    enum pd_status status = open_files(s, o, &target, &draft, err);
    if (status)
        return status;
    s->info.target_digest = gguf_digest(target);
    s->info.target_file = target;
    s->vocab = vocab_new(target, o->tokenizer);
    s->info.draft_digest = draft ? gguf_digest(draft) : 0;
    if ((status = cut(&s->info.target, o, s->info.first, err)) || (status = place(s, o, err)) ||
        (status = check_memory(s, o, err)))
        return status;
    if (draft && wanted(o, ROLE_DRAFTER) && (status = match_vocab(s, target, draft, o, err)))
        return status;
    s->info.threads =
        o->threads ? o->threads : compute_threads(o->n_stages, s->info.target.weights_bytes, o->alone);
    s->info.draft_threads =
        o->draft_threads ? o->draft_threads
        : o->threads     ? o->threads
        : draft ? compute_threads(o->n_stages, s->info.draft.weights_bytes * (uint64_t)o->n_stages, o->alone)
                : 1;
    c->n_stages = o->n_stages;
    bool with_draft = draft && wanted(o, ROLE_DRAFTER);
    s->to_load = (o->only_role == COMPUTE_ALL ? o->n_stages : o->only_role != ROLE_DRAFTER) + with_draft;
    for (int i = 0; i < o->n_stages && !status; i++)
        if (wanted(o, role_stage(i)))
            status = load_stage(c, i, target, o, err);
    if (!status && with_draft)
        status = load_draft(c, draft, o, err);
    return status;
}

enum pd_status compute_models(struct compute *out, const struct compute_options *o, struct pd_error *err)
{
    struct compute_self *s = mem_new(1, sizeof *s);
    *out = (struct compute){.self = s, .free = compute_self_free};
    pthread_mutex_init(&s->lock, NULL);
    s->tokenizer = o->tokenizer;
    s->any_pre = o->allow_unknown_tokenizer;
    enum pd_status status = load_all(out, o, err);
    if (status)
        compute_free(out);
    return status;
}
