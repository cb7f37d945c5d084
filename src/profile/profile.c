/* Device profiles: strict INI (by inih), durations by rows, fitting to another number of stages. */
#include "profile/cluster.h"
#include "profile/profile_data.h"

#include <errno.h>
#include <ini.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_MAX = 1 << 20, KEYS_MAX = 16384, LINE_MAX_BYTES = INI_MAX_LINE - 2 };
static const double MS_MAX = 1e7; /* about three hours; beyond it nanoseconds would soon overflow sums */

/* ---- reading ---- */

/* What a section of durations may hold: a table, or the terms of a roofline. */
struct duration {
    bool seen;
    int line; /* of the section's first key, for messages */
    struct curve table;
    double weights_gb, bandwidth_gb_s, gflop_per_row, peak_gflop_s, constant_ms; /* < 0: not given */
};

struct parse {
    const char *name;
    const char *text;
    size_t size, at;
    int line;
    bool failed;
    struct pd_error *err;
    struct profile *p;
    struct cluster *cluster;
    char (*keys)[96]; /* "section key" seen, to refuse doubles */
    int n_keys, keys_max;
    struct duration all, last, prefill, draft, one[STAGES_MAX];
    int hop_line[STAGES_MAX + 1]; /* of a section for that hop; 0: none */
    bool have_latency, have_bandwidth, have_control, have_stages;
};

static int fail(struct parse *ps, const char *section, const char *key, const char *what)
{
    if (!ps->failed) {
        ps->failed = true;
        error_set(ps->err, PD_ERR_PROFILE, "%s:%d: [%.40s] %.40s: %s", ps->name, ps->line, section, key,
                  what);
    }
    return 0;
}

/* inih does not tell line numbers to its handler and cuts long lines in silence, so lines are dealt out here. */
static char *read_line(char *out, int room, void *stream)
{
    struct parse *ps = stream;
    if (ps->at >= ps->size || ps->failed)
        return NULL;
    const char *from = ps->text + ps->at, *end = memchr(from, '\n', ps->size - ps->at);
    size_t n = end ? (size_t)(end - from) + 1 : ps->size - ps->at;
    ps->line++;
    ps->at += n;
    if (n > LINE_MAX_BYTES || (int)n >= room || memchr(from, '\0', n)) {
        fail(ps, "", "line", n > LINE_MAX_BYTES ? "too long" : "not text");
        return NULL;
    }
    memcpy(out, from, n);
    out[n] = '\0';
    return out;
}

/* A finite number in [min, max], with nothing after it. */
static bool number(const char *text, double min, double max, double *out)
{
    char *end;
    errno = 0;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*out) && *out >= min && *out <= max;
}

/* "1:50 32:50 64:100" */
const char *curve_read(struct curve *c, const char *text)
{
    c->n = 0;
    while (*text) {
        char *end;
        long rows = strtol(text, &end, 10);
        if (end == text || *end != ':')
            return "not a table like 1:50 32:50 64:100";
        text = end + 1;
        double ms = strtod(text, &end);
        if (end == text || (*end && *end != ' ' && *end != '\t'))
            return "not a table like 1:50 32:50 64:100";
        if (!isfinite(ms) || ms < 0 || ms > MS_MAX)
            return "a duration is negative or not finite";
        if (rows < 1 || rows > 1 << 20)
            return "row counts start at 1";
        if (c->n && (rows <= c->rows[c->n - 1] || ms < c->ms[c->n - 1]))
            return "row counts must rise, and durations must not fall";
        if (c->n == PROFILE_POINTS)
            return "too many points (16 at most)";
        c->rows[c->n] = (int32_t)rows;
        c->ms[c->n++] = ms;
        for (text = end; *text == ' ' || *text == '\t';)
            text++;
    }
    return c->n ? NULL : "the table is empty";
}

const char *profile_read_experts(struct profile_experts *out, const char *text)
{
    char *end;
    *out = (struct profile_experts){.measured = !strcmp(text, "measured")};
    if (out->measured)
        return NULL;
    const long count = strtol(text, &end, 10);
    const long used = *end == ',' ? strtol(end + 1, &end, 10) : 0;
    const double share = *end == ',' ? strtod(end + 1, &end) : -1;
    if (*end || !(share >= 0 && share <= 1))
        return "neither measured nor COUNT,USED,SHARE as in 128,8,0.85";
    if (used < 1 || count < used || count > 1 << 20)
        return "a row takes at least one expert, and at most all";
    *out = (struct profile_experts){.count = (int)count, .used = (int)used, .share = share};
    return NULL;
}

static int read_duration(struct parse *ps, struct duration *d, const char *section, const char *key,
                         const char *value)
{
    if (!d->seen)
        *d = (struct duration){true, ps->line, {0}, -1, -1, -1, -1, 0};
    if (!strcmp(key, "step_ms")) {
        const char *wrong = curve_read(&d->table, value);
        return wrong ? fail(ps, section, key, wrong) : 1;
    }
    const struct {
        const char *key;
        double *to, min;
    } terms[] = {{"weights_gb", &d->weights_gb, 0},
                 {"bandwidth_gb_s", &d->bandwidth_gb_s, 1e-6},
                 {"gflop_per_row", &d->gflop_per_row, 0},
                 {"peak_gflop_s", &d->peak_gflop_s, 1e-6},
                 {"constant_ms", &d->constant_ms, 0}};
    for (size_t i = 0; i < PD_COUNT(terms); i++)
        if (!strcmp(key, terms[i].key))
            return number(value, terms[i].min, 1e9, terms[i].to)
                       ? 1
                       : fail(ps, section, key, "not a number in range");
    return fail(ps, section, key, "unknown key");
}

static int read_profile_key(struct parse *ps, const char *section, const char *key, const char *value)
{
    double x;
    if (!strcmp(key, "stages")) {
        if (!number(value, 1, STAGES_MAX, &x) || x != floor(x))
            return fail(ps, section, key, "not a whole number from 1 to 128");
        ps->p->n_stages = (int)x;
        ps->have_stages = true;
        return 1;
    }
    if (!strcmp(key, "stop_ms"))
        return number(value, 0, MS_MAX, &ps->p->stop_ms) ? 1
                                                         : fail(ps, section, key, "not a number in range");
    if (!strcmp(key, "scale")) {
        if (strcmp(value, "device") != 0 && strcmp(value, "model") != 0)
            return fail(ps, section, key, "neither device nor model");
        ps->p->scale_model = !strcmp(value, "model");
        return 1;
    }
    if (!strcmp(key, "experts")) {
        const char *wrong = profile_read_experts(&ps->p->experts, value);
        return wrong ? fail(ps, section, key, wrong) : 1;
    }
    return fail(ps, section, key, "unknown key");
}

static int read_link_key(struct parse *ps, const char *section, const char *key, const char *value)
{
    double x;
    if (!strcmp(key, "row_bytes")) {
        if (!number(value, 0, 1 << 26, &x) || x != floor(x))
            return fail(ps, section, key, "not a whole number in range");
        ps->p->row_bytes = (int)x;
        return 1;
    }
    const struct {
        const char *key;
        double *to, min;
        bool *have;
    } keys[] = {{"latency_us", &ps->p->link_latency_us, 0, &ps->have_latency},
                {"bandwidth_gbps", &ps->p->link_gbps, 1e-6, &ps->have_bandwidth},
                {"control_us", &ps->p->control_latency_us, 0, &ps->have_control}};
    for (size_t i = 0; i < PD_COUNT(keys); i++)
        if (!strcmp(key, keys[i].key)) {
            *keys[i].have = true;
            return number(value, keys[i].min, 1e9, keys[i].to)
                       ? 1
                       : fail(ps, section, key, "not a number in range");
        }
    return fail(ps, section, key, "unknown key");
}

/* [link draft], [link 3]: the hop that begins there; false: no such section. */
static bool hop_index(const char *section, int *hop)
{
    double index;
    if (strncmp(section, "link ", 5) != 0)
        return false;
    if (!strcmp(section + 5, "draft")) {
        *hop = 0;
        return true;
    }
    if (!number(section + 5, 0, STAGES_MAX - 1, &index) || index != floor(index))
        return false;
    *hop = (int)index + 1;
    return true;
}

static int read_hop_key(struct parse *ps, int hop, const char *section, const char *key, const char *value)
{
    struct hop *h = &ps->p->hop[hop];
    if (!ps->hop_line[hop])
        *h = (struct hop){-1, 0};
    ps->hop_line[hop] = ps->line;
    bool latency = !strcmp(key, "latency_us");
    if (!latency && strcmp(key, "bandwidth_gbps") != 0)
        return fail(ps, section, key, "unknown key");
    return number(value, latency ? 0 : 1e-6, 1e9, latency ? &h->latency_us : &h->gbps)
               ? 1
               : fail(ps, section, key, "not a number in range");
}

static bool seen_before(struct parse *ps, const char *section, const char *key)
{
    char both[96];
    snprintf(both, sizeof both, "%.47s %.47s", section, key);
    for (int i = 0; i < ps->n_keys; i++)
        if (!strcmp(ps->keys[i], both))
            return true;
    if (ps->n_keys < ps->keys_max)
        memcpy(ps->keys[ps->n_keys++], both, sizeof both);
    return false;
}

static int read_key(void *user, const char *section, const char *key, const char *value)
{
    struct parse *ps = user;
    if (ps->failed)
        return 0;
    if (seen_before(ps, section, key))
        return fail(ps, section, key, "given twice");
    if (!strcmp(section, "profile"))
        return read_profile_key(ps, section, key, value);
    if (!strcmp(section, "link"))
        return read_link_key(ps, section, key, value);
    if (!strcmp(section, "head")) {
        if (strcmp(key, "ms") != 0)
            return fail(ps, section, key, "unknown key");
        return number(value, 0, MS_MAX, &ps->p->head_ms) ? 1
                                                         : fail(ps, section, key, "not a number in range");
    }
    int hop;
    if (hop_index(section, &hop))
        return read_hop_key(ps, hop, section, key, value);
    if (cluster_section(section)) {
        const char *wrong = cluster_key(ps->cluster, section, key, value);
        return wrong ? fail(ps, section, key, wrong) : 1;
    }
    struct duration *d = !strcmp(section, "stage")        ? &ps->all
                         : !strcmp(section, "stage last") ? &ps->last
                         : !strcmp(section, "prefill")    ? &ps->prefill
                         : !strcmp(section, "draft")      ? &ps->draft
                                                          : NULL;
    double index;
    if (!d && !strncmp(section, "stage ", 6)) {
        if (!number(section + 6, 0, STAGES_MAX - 1, &index) || index != floor(index))
            return fail(ps, section, key, "stages are counted from 0; or: last");
        d = &ps->one[(int)index];
    }
    return d ? read_duration(ps, d, section, key, value) : fail(ps, section, key, "unknown section");
}

/* ---- durations ---- */

/* max(bytes / bandwidth, rows * flops / peak) + constant has one bend; a curve keeps it exactly. */
static int roofline(struct parse *ps, const struct duration *d, const char *section, struct curve *out)
{
    if (d->weights_gb < 0 || d->bandwidth_gb_s < 0 || d->gflop_per_row < 0 || d->peak_gflop_s < 0)
        return fail(ps, section, "step_ms",
                    "missing (or weights_gb, bandwidth_gb_s, gflop_per_row and peak_gflop_s)");
    double memory = d->weights_gb / d->bandwidth_gb_s * 1e3, row = d->gflop_per_row / d->peak_gflop_s * 1e3;
    if (!(memory + 1024 * row + d->constant_ms < MS_MAX))
        return fail(ps, section, "weights_gb", "a step takes hours");
    double bend = row > 0 ? memory / row : 1e9;
    int32_t below = (int32_t)PD_MIN(floor(bend), 1 << 19);
    int32_t at[3] = {1, PD_MAX(below, 1), PD_MAX(below, 1) + 1};
    out->n = 0;
    for (int i = 0; i < 3; i++) {
        if (out->n && at[i] == out->rows[out->n - 1])
            continue;
        out->rows[out->n] = at[i];
        out->ms[out->n++] = PD_MAX(memory, row * at[i]) + d->constant_ms;
    }
    if (bend < 1 << 19) { /* one more point, so that the last slope is the compute-bound one */
        out->rows[out->n] = at[2] + 1;
        out->ms[out->n++] = PD_MAX(memory, row * (at[2] + 1)) + d->constant_ms;
    }
    return 1;
}

static int make_curve(struct parse *ps, const struct duration *d, const char *section, struct curve *out)
{
    ps->line = d->line ? d->line : ps->line;
    if (!d->seen)
        return fail(ps, section, "step_ms", "missing");
    bool terms =
        d->weights_gb >= 0 || d->bandwidth_gb_s >= 0 || d->gflop_per_row >= 0 || d->peak_gflop_s >= 0;
    if (d->table.n && terms)
        return fail(ps, section, "step_ms", "given beside weights_gb and the like: one or the other");
    if (!d->table.n)
        return roofline(ps, d, section, out);
    *out = d->table;
    for (int i = 0; i < out->n; i++)
        out->ms[i] += d->constant_ms;
    return 1;
}

static void finish(struct parse *ps)
{
    struct profile *p = ps->p;
    int n = ps->have_stages ? p->n_stages : 1;
    for (int i = n; i < STAGES_MAX; i++)
        if (ps->one[i].seen) {
            ps->line = ps->one[i].line;
            fail(ps, "stage", "index", "beyond the profile's stages (counted from 0)");
        }
    for (int i = 0; i < n && !ps->failed; i++) {
        char section[32] = "stage";
        const struct duration *d = &ps->all;
        if (ps->one[i].seen) {
            d = &ps->one[i];
            snprintf(section, sizeof section, "stage %d", i);
        } else if (i == n - 1 && ps->last.seen) {
            d = &ps->last;
            snprintf(section, sizeof section, "stage last");
        }
        make_curve(ps, d, section, &p->stage[i]);
    }
    if (ps->prefill.seen && !ps->failed)
        make_curve(ps, &ps->prefill, "prefill", &p->prefill);
    if (!ps->failed)
        make_curve(ps, &ps->draft, "draft", &p->draft);
    for (int i = 0; i <= STAGES_MAX && !ps->failed; i++) {
        ps->line = ps->hop_line[i] ? ps->hop_line[i] : ps->line;
        if (ps->hop_line[i] && (p->hop[i].latency_us < 0 || !(p->hop[i].gbps > 0) || i >= n))
            fail(ps, "link", "hop",
                 i >= n ? "beyond the profile's stages" : "needs latency_us and bandwidth_gbps");
    }
    if (!ps->have_latency)
        fail(ps, "link", "latency_us", "missing");
    if (!ps->have_bandwidth)
        fail(ps, "link", "bandwidth_gbps", "missing");
    if (!ps->have_control)
        p->control_latency_us = p->link_latency_us;
    p->n_stages = n;
}

static enum pd_status parse(struct profile *out, struct cluster *cluster, const struct profile_text *t,
                            struct pd_error *err)
{
    const char *name = t->name, *text = t->text;
    const size_t size = t->size;
    if (size > TEXT_MAX)
        return error_set(err, PD_ERR_PROFILE, "%s: too large for a device profile", name);
    memset(out, 0, sizeof *out);
    const char *base = strrchr(name, '/');
    snprintf(out->name, sizeof out->name, "%.63s", base ? base + 1 : name);
    struct parse *ps = mem_new(1, sizeof *ps);
    *ps = (struct parse){.name = name,
                         .text = text,
                         .size = size,
                         .err = err,
                         .p = out,
                         .cluster = cluster,
                         .keys_max = KEYS_MAX};
    ps->keys = mem_new((size_t)ps->keys_max, sizeof *ps->keys);
    int bad_line = ini_parse_stream(read_line, ps, read_key, ps);
    if (bad_line && !ps->failed) {
        ps->line = bad_line;
        fail(ps, "", "line", "neither [section], key = value nor a comment");
    }
    if (!ps->failed)
        finish(ps);
    bool failed = ps->failed;
    free(ps->keys);
    free(ps);
    return failed ? PD_ERR_PROFILE : PD_OK;
}

enum pd_status profile_parse_cluster(struct profile *out, struct cluster *cluster,
                                     const struct profile_text *t, struct pd_error *err)
{
    memset(cluster, 0, sizeof *cluster);
    enum pd_status status = parse(out, cluster, t, err);
    return status ? status : cluster_check(cluster, t->name, err);
}

enum pd_status profile_parse(struct profile *out, const char *name, const char *text, size_t size,
                             struct pd_error *err)
{
    struct cluster *c = mem_new(1, sizeof *c);
    const struct profile_text t = {name, text, size};
    enum pd_status status = profile_parse_cluster(out, c, &t, err);
    free(c);
    return status;
}

/* ---- finding ---- */

const char *profile_names(void)
{
    static _Thread_local char names[256];
    size_t at = 0;
    names[0] = '\0';
    for (const struct profile_data *d = profile_data; d->name && at < sizeof names; d++)
        at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", at ? ", " : "", d->name);
    return names;
}

static enum pd_status load_file(struct profile *out, struct cluster *cluster, const char *path,
                                struct pd_error *err)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return error_set(err, PD_ERR_FILE, "%s: %s", path, strerror(errno));
    char *text = mem_new(TEXT_MAX + 2, 1);
    size_t size = fread(text, 1, TEXT_MAX + 1, f);
    bool bad = ferror(f) != 0;
    fclose(f);
    const struct profile_text t = {path, text, size};
    enum pd_status s = bad ? error_set(err, PD_ERR_FILE, "%s: cannot be read", path)
                           : profile_parse_cluster(out, cluster, &t, err);
    free(text);
    return s;
}

enum pd_status profile_load_cluster(struct cluster *cluster, const char *path, struct pd_error *err)
{
    struct profile *p = mem_new(1, sizeof *p);
    enum pd_status status = load_file(p, cluster, path, err);
    free(p);
    if (!status && !cluster->n)
        status =
            error_set(err, PD_ERR_PROFILE,
                      "%s describes devices, not hosts: 'pipedec profile --hosts FILE' measures them", path);
    return status;
}

static enum pd_status load_path(struct profile *out, const char *path, struct pd_error *err)
{
    struct cluster *c = mem_new(1, sizeof *c);
    enum pd_status status = load_file(out, c, path, err);
    free(c);
    return status;
}

enum pd_status profile_load(struct profile *out, const char *name_or_path, struct pd_error *err)
{
    size_t n = strlen(name_or_path);
    bool path = strchr(name_or_path, '/') || (n > 4 && !strcmp(name_or_path + n - 4, ".ini"));
    if (path)
        return load_path(out, name_or_path, err);
    const char *dir = getenv("PIPEDEC_PROFILES");
    if (dir && *dir) {
        char file[4096];
        snprintf(file, sizeof file, "%s/%s.ini", dir, name_or_path);
        FILE *f = fopen(file, "rb");
        if (f) {
            fclose(f);
            return load_path(out, file, err);
        }
    }
    for (const struct profile_data *d = profile_data; d->name; d++)
        if (!strcmp(d->name, name_or_path))
            return profile_parse(out, d->name, d->text, strlen(d->text), err);
    return error_set(err, PD_ERR_PROFILE,
                     "no device profile '%.64s' (there are: %s; or a path to an INI file)", name_or_path,
                     profile_names());
}

/* ---- use ---- */

double curve_ms(const struct curve *c, double rows)
{
    if (c->n == 0)
        return 0;
    if (rows <= c->rows[0] || c->n == 1)
        return c->ms[0];
    int i = 1;
    while (i < c->n - 1 && rows > c->rows[i])
        i++;
    double slope = (c->ms[i] - c->ms[i - 1]) / (c->rows[i] - c->rows[i - 1]);
    return c->ms[i] + slope * (rows - c->rows[i]);
}

int64_t curve_ns(const struct curve *c, int rows)
{
    return llround(curve_ms(c, rows) * 1e6);
}

void profile_set_experts(struct profile *p, const struct profile_experts *e)
{
    if (!p->scale_model && !p->experts.measured && !p->experts.count)
        p->experts = *e;
}

double profile_experts_reads(const struct profile_experts *e, double rows)
{
    if (!e->count || rows <= 1)
        return 1;
    const double part = (double)e->used / e->count; /* of all experts, that a row takes */
    return 1 + e->share * ((1 - pow(1 - part, rows)) / part - 1);
}

double profile_stage_ns(const struct profile *p, int stage, int rows)
{
    const struct curve *c = &p->stage[stage];
    const double read = 1e6 * curve_ms(c, 1) * profile_experts_reads(&p->experts, rows);
    return PD_MAX((double)curve_ns(c, rows), p->experts.count ? read : 0);
}

int64_t profile_step_ns(const struct profile *p)
{
    int64_t most = 0;
    for (int i = 0; i < p->n_stages; i++) {
        int64_t head = i == p->n_stages - 1 ? llround(p->head_ms * 1e6) : 0;
        most = PD_MAX(most, curve_ns(&p->stage[i], 1) + head);
    }
    return most;
}

int64_t profile_token_ns(const struct profile *p)
{
    double ns = 1e6 * p->head_ms + 1e3 * p->control_latency_us;
    for (int i = 0; i < p->n_stages; i++)
        ns += (double)curve_ns(&p->stage[i], 1) + 1e3 * profile_hop_us(p, i);
    return llround(ns);
}

/* sum += weight * c, at the union of both curves' points (the first 16 of them: shapes of one device family). */
static void curve_add(struct curve *sum, const struct curve *c, double weight)
{
    struct curve out = {0};
    int a = 0, b = 0;
    while ((a < sum->n || b < c->n) && out.n < PROFILE_POINTS) {
        int32_t ra = a < sum->n ? sum->rows[a] : INT32_MAX, rb = b < c->n ? c->rows[b] : INT32_MAX;
        int32_t rows = PD_MIN(ra, rb);
        a += ra == rows;
        b += rb == rows;
        out.rows[out.n] = rows;
        out.ms[out.n++] = curve_ms(sum, rows) + weight * curve_ms(c, rows);
    }
    *sum = out;
}

void curve_scale(struct curve *c, double factor)
{
    for (int i = 0; i < c->n; i++)
        c->ms[i] *= factor;
}

/* Stage `i` of `n` covers the own stages [i, i + 1) * own / n: their times in proportion. */
static struct curve model_share(const struct profile *p, int i, int n)
{
    double from = (double)i * p->n_stages / n, to = (double)(i + 1) * p->n_stages / n;
    struct curve sum = {0};
    for (int k = (int)from; k < p->n_stages && k < to; k++) {
        double part = PD_MIN(to, k + 1) - PD_MAX(from, k);
        if (part > 1e-9)
            curve_add(&sum, &p->stage[k], part);
    }
    return sum;
}

/* Device `i` of `n`: the slowest of the own devices in its place, so that a slow one is not lost when there are
 * fewer; the last device (less a head) stays the last. */
static struct curve device_like(const struct profile *p, int i, int n)
{
    int own = p->n_stages;
    if (i == n - 1 || own == 1)
        return p->stage[own - 1];
    int from = (int)((int64_t)i * own / n), to = (int)((int64_t)(i + 1) * own / n);
    to = PD_MIN(PD_MAX(to, from + 1), own - 1);
    from = PD_MIN(from, to - 1);
    int slow = from;
    for (int k = from; k < to; k++)
        if (curve_ms(&p->stage[k], 1) > curve_ms(&p->stage[slow], 1))
            slow = k;
    return p->stage[slow];
}

enum pd_status profile_fit(struct profile *p, int n_stages, struct pd_error *err)
{
    if (n_stages < 1 || n_stages > STAGES_MAX)
        return error_set(err, PD_ERR_STAGES, "%d stages: a profile can be fitted to 1..%d", n_stages,
                         STAGES_MAX);
    if (n_stages == p->n_stages)
        return PD_OK;
    struct profile *own = mem_new(1, sizeof *own);
    *own = *p;
    for (int i = 0; i < n_stages; i++)
        p->stage[i] = p->scale_model ? model_share(own, i, n_stages) : device_like(own, i, n_stages);
    memset(p->hop, 0, sizeof p->hop); /* of other pairs of devices */
    if (p->scale_model)
        curve_scale(&p->prefill, (double)own->n_stages / n_stages);
    p->n_stages = n_stages;
    free(own);
    return PD_OK;
}

/* Prompts have a curve of their own where it was measured; rows of trees beside them cost what they add. */
double profile_batch_ns(const struct profile *p, int stage, int n, int n_prompt)
{
    const double all = profile_stage_ns(p, stage, n);
    if (!n_prompt || !p->prefill.n)
        return all;
    const double one = (double)curve_ns(&p->prefill, 1) * profile_experts_reads(&p->experts, n_prompt);
    const double prompt = PD_MAX((double)curve_ns(&p->prefill, n_prompt), p->experts.count ? one : 0);
    return n == n_prompt ? prompt : prompt + all - profile_stage_ns(p, stage, n_prompt);
}

/* Heads of several rows grow as the last stage's layers do. */
double profile_head_ns(const struct profile *p, int n)
{
    const struct curve *last = &p->stage[PD_MAX(p->n_stages, 1) - 1];
    double one = (double)curve_ns(last, 1);
    return 1e6 * p->head_ms * (n > 1 && one > 0 ? (double)curve_ns(last, n) / one : 1);
}

void profile_costs(const struct profile *p, int n_stages, double *rows_ns)
{
    for (int rows = 1; rows <= BATCH_ROWS; rows++) {
        rows_ns[rows - 1] = 0;
        for (int i = 0; i < n_stages; i++) {
            double ns = profile_stage_ns(p, i, rows) + (i == n_stages - 1 ? 1e6 * p->head_ms : 0);
            rows_ns[rows - 1] = PD_MAX(rows_ns[rows - 1], ns);
        }
    }
}

double profile_wire_ns(const struct profile *p, int n_embd, int from, const struct msg *m)
{
    int row_bytes =
        p->row_bytes ? p->row_bytes : 4 * n_embd; /* hidden states, which the drafter's rows lack */
    double bytes = 64 + (m->type == MSG_ROWS ? m->rows.n * (16.0 + (from ? row_bytes : 0)) : 0);
    double gbps = p->hop[from].gbps > 0 ? p->hop[from].gbps : p->link_gbps;
    return gbps > 0 ? bytes * 8 / gbps : 0;
}

double profile_hop_us(const struct profile *p, int from)
{
    return p->hop[from].gbps > 0 ? p->hop[from].latency_us : p->link_latency_us;
}
