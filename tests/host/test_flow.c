/* needs: engine host compute profile sample */
/* The simulator over a pretended model that checks what real ones rely on: every hidden state reaches the next stage
 * whole, rows are computed only on ancestors that are there, positions are committed once, in order and with the text's
 * tokens, rows leave the tree level once, the draft's history is the path. Conversations of several turns with any kept
 * length, tiny trees and batches, 28 stages with 64 rows a step; delays, reorderings, cancels. Crowds of requests too, with
 * ranks that die or send rubbish: that ends them all, what they got till then is right, and the fault names the rank.
 *
 *   drive_flow            400 conversations, 1000 crowds
 *   drive_flow SEED [N]   that one of each, or N
 */
#include "pretend.h"

enum { TURNS = 4 };

static unsigned pick(uint64_t seed, unsigned what, unsigned n)
{
    return (unsigned)(rng_u64(seed, what, 0, 77) % n);
}

struct text {
    int32_t tokens[CTX + 1];
    int n, stop_after;
};

static enum pd_reason collect(void *user, const struct token_event *t)
{
    struct text *x = user;
    assert_true(x->n < CTX);
    x->tokens[x->n++] = t->token;
    return x->stop_after && x->n >= x->stop_after ? PD_REASON_STOP : PD_REASON_NONE;
}

static struct profile some_profile(uint64_t seed, int n_stages)
{
    struct profile p = {.name = "flow", .n_stages = n_stages};
    for (int i = 0; i < n_stages; i++) {
        double ms = 4 + (pick(seed, 1, 3) ? 0 : pick(seed, 10 + (unsigned)i, 9));
        p.stage[i] = (struct curve){2, {1, 64}, {ms, ms + pick(seed, 2, 12)}};
    }
    p.prefill = (struct curve){1, {64}, {9}};
    p.draft = (struct curve){2, {1, 64}, {0.5 + pick(seed, 3, 14), 16}};
    p.head_ms = 0.4 * pick(seed, 4, 3);
    p.link_latency_us = 100.0 * pick(seed, 5, 30);
    p.link_gbps = 10;
    p.control_latency_us = 100.0 * pick(seed, 6, 60);
    p.stop_ms = 0.5 * pick(seed, 7, 12);
    p.row_bytes = 512;
    return p;
}

static struct driver_options some_options(uint64_t seed, int n_stages, const struct profile *p)
{
    static const int trees[] = {64, 64, 100, 600}, widths[] = {0, 1, 7, 32, 64},
                     live[] = {1, 2, 33, 130, 1000};
    struct driver_options o = {.profile = p, .disturb.seed = seed, .n_embd = EMBD};
    o.drafter = (struct drafter_options){.n_stages = n_stages,
                                         .ctx = CTX,
                                         .tree_nodes = trees[pick(seed, 20, 4)],
                                         .live_rows_max = live[pick(seed, 21, 5)],
                                         .draft_rows = 9 + (int)pick(seed, 22, 60),
                                         .have_draft = true,
                                         .grace = pick(seed, 23, 2) ? 0.2 : 0};
    struct policy_options *y = &o.drafter.policy;
    y->mode = (enum pd_mode)(PD_MODE_PP + pick(seed, 24, POLICY_MODES + 2));
    y->mode = y->mode > PD_MODE_BEST ? PD_MODE_BEST : y->mode;
    y->width = widths[pick(seed, 25, 5)];
    y->width_max = pick(seed, 26, 2) ? 64 : 0;
    y->children = (int)pick(seed, 27, 17);
    y->depth = (int)pick(seed, 28, 3) * 5;
    y->expand = (int)pick(seed, 29, 3) * 16;
    if (n_stages == 28 && y->mode >= PD_MODE_LAYER) {
        y->width = 64;
        o.drafter.live_rows_max = 2000;
        o.drafter.tree_nodes = 4000;
    }
    o.disturb.jitter = 0.5 * pick(seed, 30, 3);
    o.disturb.reorder = pick(seed, 31, 2);
    return o;
}

/* After a request: what may be kept is there, on every stage, and it is the text. */
static void check_kept(const struct pretend *p, const int32_t *sequence, int kept)
{
    for (int i = 0; i <= p->n_stages; i++) {
        const struct place *l = &p->levels[i].place[0];
        assert_true(i == p->n_stages || l->n >= kept); /* the draft may lag */
        assert_memory_equal(l->tokens, sequence, (size_t)PD_MIN(l->n, kept) * sizeof *sequence);
    }
}

static void conversation(uint64_t seed)
{
    static const int stages[] = {1, 2, 3, 5, 14, 28};
    int n_stages = stages[pick(seed, 40, 6)];
    struct profile profile = some_profile(seed, n_stages);
    struct driver_options o = some_options(seed, n_stages, &profile);
    double top = 0.3 + 0.068 * pick(seed, 41, 11);
    struct oracle_options oo = {.seed = seed, .n_vocab = 300, .end_token = 3, .end_percent = 10, .n_top = 4};
    for (int i = 0; i < oo.n_top; i++)
        oo.top[i] = PD_MIN(1, 1 - (1 - top) * pow(0.5, i));
    int64_t cancel_at_ns = 0;
    if (pick(seed, 42, 4) == 0)
        cancel_at_ns = 1 + (int64_t)pick(seed, 43, 1200) * 1000000;
    struct pretend p = {0};
    struct compute c;
    struct driver *d;
    struct pd_error err = {0};
    pretend_new(&c, &p, &oo, n_stages, 1);
    assert_int_equal(sim_new(&d, &o, &c, &err), PD_OK);
    int32_t sequence[2 * CTX + 2] = {0};
    int known = 0; /* of sequence: the newest request's prompt and text */
    for (unsigned turn = 0; turn < TURNS; turn++) {
        int kept = d->kept;
        int keep = pick(seed, 50 + turn, 3) ? kept : (int)pick(seed, 60 + turn, (unsigned)kept + 1);
        int from = pick(seed, 70 + turn, 4) ? PD_MAX(keep, PD_MIN(known, CTX - 1))
                                            : keep; /* or another reply instead */
        int n = PD_MIN(CTX, from + 1 + (int)pick(seed, 80 + turn, turn ? 15 : 75));
        for (int i = from; i < n; i++)
            sequence[i] = 4 + (int32_t)pick(seed, 1000 * (turn + 1) + (unsigned)i, 290);
        struct request r = {.tokens = sequence,
                            .n_tokens = n,
                            .keep = PD_MIN(keep, n - 1),
                            .max_tokens = 1 + (int)pick(seed, 90 + turn, 50),
                            .sample = sample_defaults(),
                            .end_tokens = {3},
                            .n_end_tokens = 1};
        struct text x = {.stop_after = pick(seed, 100 + turn, 5) ? 0 : 1 + (int)pick(seed, 110 + turn, 20)};
        struct sink sink = {.user = &x, .on_token = collect};
        struct result res;
        struct arrival a = {.cancel_at_ns = cancel_at_ns, .request = &r, .sink = &sink};
        if (driver_generate_all(d, &a, 1, &res, &err))
            fail_msg("%s", err.text);
        memcpy(&sequence[n], x.tokens, (size_t)x.n * sizeof *x.tokens);
        known = n + x.n;
        for (int i = n; i < known; i++) { /* the target's own text, whatever the pipeline did */
            int32_t token;
            struct head_row row = {.pos = i - 1, .history = sequence, .sample = &r.sample};
            head_one(&p.inner.head, &row, &token, NULL);
            assert_int_equal(sequence[i], token);
        }
        check_kept(&p, sequence, d->kept);
        assert_true(d->kept >= PD_MIN(r.keep, n) && d->kept < known);
    }
    d->free(d);
    pretend_free(&p);
}

/* ---- several requests that arrive, end and are cancelled at random ---- */

enum { CROWD = 12 };

struct guest {
    int32_t tokens[CTX + 1];
    int n;
    struct request request;
    struct text text;
    struct sink sink;
};

/* Prompts of three families, so that prefixes are shared with running and with finished requests. */
static void invite(uint64_t seed, struct guest *g, struct arrival *a)
{
    unsigned family = pick(seed, 1, 3);
    g->n = 1 + (int)pick(seed, 2, pick(seed, 3, 3) ? 30 : CTX);
    int common = (int)pick(seed, 4, (unsigned)g->n + 1);
    for (int i = 0; i < g->n; i++)
        g->tokens[i] = 4 + (int32_t)(rng_u64(i < common ? family : seed, (uint64_t)i, 5, 6) % 290);
    g->request = (struct request){.tokens = g->tokens,
                                  .n_tokens = g->n,
                                  .keep = pick(seed, 7, 4) ? -1 : (int)pick(seed, 8, (unsigned)g->n),
                                  .n_prompt = pick(seed, 9, 3) ? 0 : 1 + (int)pick(seed, 10, (unsigned)g->n),
                                  .max_tokens = 1 + (int)pick(seed, 11, 60),
                                  .sample = sample_defaults(),
                                  .end_tokens = {3},
                                  .n_end_tokens = 1};
    g->text = (struct text){.stop_after = pick(seed, 12, 4) ? 0 : 1 + (int)pick(seed, 13, 20)};
    g->sink = (struct sink){.user = &g->text, .on_token = collect};
    *a = (struct arrival){.at_ns = (int64_t)pick(seed, 14, 2) * pick(seed, 15, 900) * 1000000,
                          .request = &g->request,
                          .sink = &g->sink};
    if (pick(seed, 16, 4) == 0)
        a->cancel_at_ns = a->at_ns + 1 + (int64_t)pick(seed, 17, 700) * 1000000;
}

/* Alone or in company: the target's own text, as far as it came. */
static void check_guest(const struct pretend *p, struct guest *g, const struct arrival *a,
                        const struct result *r, bool failed)
{
    int32_t all[2 * CTX + 2];
    memcpy(all, g->tokens, (size_t)g->n * sizeof *all);
    memcpy(all + g->n, g->text.tokens, (size_t)g->text.n * sizeof *all);
    for (int i = g->n; i < g->n + g->text.n; i++) {
        int32_t token;
        struct head_row row = {.pos = i - 1, .history = all, .sample = &g->request.sample};
        head_one(&p->inner.head, &row, &token, NULL);
        assert_int_equal(all[i], token);
    }
    assert_int_equal(r->stats.tokens, g->text.n);
    if (r->finish == PD_REASON_LENGTH)
        assert_int_equal(g->text.n, g->request.max_tokens);
    assert_true(r->finish != PD_REASON_CANCELLED || a->cancel_at_ns);
    assert_true(r->finish != PD_REASON_NONE && (r->finish != PD_REASON_FAULT || failed));
}

enum fate { FATE_NONE, FATE_DEATH, FATE_RUBBISH, FATE_LIES, FATES };
static int met[FATES]; /* crowds that have been ended by it */

/* What happens to one rank of the crowd's; returns which. */
static int choose_fate(uint64_t seed, enum fate *fate, struct disturbance *d, int n_stages)
{
    static const enum fate all[] = {FATE_DEATH, FATE_DEATH, FATE_RUBBISH, FATE_RUBBISH, FATE_LIES};
    const unsigned which = pick(seed, 60, 10);
    const int64_t at_ns = 1 + (int64_t)pick(seed, 61, 700) * 1000000;
    int rank = (int)pick(seed, 62, (unsigned)n_stages + 1);
    *fate = which < PD_COUNT(all) ? all[which] : FATE_NONE;
    if (*fate == FATE_DEATH) {
        rank = PD_MAX(rank, 1); /* the user's own has nobody to tell */
        d->outage[0] = (struct outage){.rank = rank, .at_ns = at_ns};
        d->n_outages = 1;
    } else if (*fate != FATE_NONE) {
        d->rubbish_rank = rank;
        d->rubbish_at_ns = at_ns;
        d->lies = *fate == FATE_LIES;
    }
    return rank;
}

/* Who lies may be believed: then anything may come, but an end. */
static void check_fault(enum fate fate, int rank, const struct pd_error *err)
{
    char name[32] = "drafter";
    if (rank)
        snprintf(name, sizeof name, "stage %d", rank - 1);
    if (fate == FATE_NONE)
        fail_msg("%s", err->text);
    met[fate]++;
    if (fate == FATE_LIES)
        return;
    assert_int_equal(err->status, PD_ERR_PEER);
    if (strncmp(err->text, name, strlen(name)) != 0)
        fail_msg("'%s' does not name %s", err->text, name);
}

static void crowd(uint64_t seed)
{
    static const int stages[] = {1, 2, 3, 5, 8, 14};
    int n_stages = stages[pick(seed, 40, 6)], lanes = 1 + (int)pick(seed, 41, 8);
    struct profile profile = some_profile(seed, n_stages);
    struct driver_options o = some_options(seed, n_stages, &profile);
    double top = 0.3 + 0.068 * pick(seed, 42, 11);
    struct oracle_options oo = {.seed = seed, .n_vocab = 300, .end_token = 3, .end_percent = 10, .n_top = 4};
    for (int i = 0; i < oo.n_top; i++)
        oo.top[i] = PD_MIN(1, 1 - (1 - top) * pow(0.5, i));
    o.drafter.lanes = lanes;
    o.drafter.chunk_rows = pick(seed, 43, 2) ? 0 : 1 + (int)pick(seed, 44, CHUNK_ROWS);
    o.drafter.chunk_rows += o.drafter.chunk_rows == 1;
    o.drafter.have_draft = pick(seed, 45, 8) > 0;
    struct pretend p = {0};
    struct compute c;
    struct driver *d;
    struct pd_error err = {0};
    enum fate fate;
    const int rank = choose_fate(seed, &fate, &o.disturb, n_stages);
    o.n_vocab = oo.n_vocab;
    pretend_new(&c, &p, &oo, n_stages, lanes);
    p.lies = fate == FATE_LIES;
    if (pick(seed, 46, 4) == 0)
        c.stage[0].copy = NULL; /* a backend without */
    assert_int_equal(sim_new(&d, &o, &c, &err), PD_OK);
    static struct guest guests[CROWD];
    bool failed = false;
    for (unsigned wave = 0; wave < 2 && !failed; wave++) { /* the second finds what the first left */
        struct arrival arrivals[CROWD];
        struct result results[CROWD];
        int n = 1 + (int)pick(seed, 50 + wave, pick(seed, 52, 3) ? 8 : CROWD);
        for (int i = 0; i < n; i++)
            invite(rng_u64(seed, wave, (uint64_t)i, 3), &guests[i], &arrivals[i]);
        failed = driver_generate_all(d, arrivals, n, results, &err) != PD_OK;
        if (failed)
            check_fault(fate, rank, &err);
        for (int i = 0; i < n && fate != FATE_LIES; i++)
            check_guest(&p, &guests[i], &arrivals[i], &results[i], failed);
    }
    d->free(d);
    pretend_free(&p);
}

static uint64_t first_seed = 1;
static int n_seeds = 400, n_crowds = 1000;

static void sweep(void **state)
{
    (void)state;
    for (int i = 0; i < n_seeds; i++) {
        fprintf(stderr, "\rseed %llu (again: drive_flow %llu)   ",
                (unsigned long long)first_seed + (unsigned)i, (unsigned long long)first_seed + (unsigned)i);
        conversation(first_seed + (uint64_t)i);
    }
    fprintf(stderr, "\n");
}

static void crowds(void **state)
{
    (void)state;
    for (int i = 0; i < n_crowds; i++) {
        fprintf(stderr, "\rcrowd %llu (again: drive_flow %llu)   ",
                (unsigned long long)first_seed + (unsigned)i, (unsigned long long)first_seed + (unsigned)i);
        crowd(first_seed + (uint64_t)i);
    }
    fprintf(stderr, "\n");
    printf("ended by a death %d, by rubbish %d, by lies %d\n", met[FATE_DEATH], met[FATE_RUBBISH],
           met[FATE_LIES]);
    for (int fate = FATE_DEATH; fate < FATES && n_crowds >= 1000; fate++)
        assert_true(met[fate] > n_crowds / 50);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        first_seed = strtoull(argv[1], NULL, 10);
        n_seeds = n_crowds = argc > 2 ? atoi(argv[2]) : 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(sweep), cmocka_unit_test(crowds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
