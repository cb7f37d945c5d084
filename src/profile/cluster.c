/* Hosts in a device profile: reading, checking, writing. */
#include "profile/cluster.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS_MAX = 100000 };

/* ---- reading ---- */

static bool number(const char *text, double min, double max, double *out)
{
    char *end;
    errno = 0;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*out) && *out >= min && *out <= max;
}

/* A number at *text that ends at a space or the end; moves behind it. */
static bool index_at(const char **text, int *out)
{
    char *end;
    long value = strtol(*text, &end, 10);
    if (end == *text || (*end && *end != ' ') || value < 0 || value >= CLUSTER_HOSTS)
        return false;
    *out = (int)value;
    *text = end + strspn(end, " ");
    return true;
}

bool cluster_section(const char *section)
{
    return !strcmp(section, "cluster") || !strncmp(section, "host ", 5) || !strncmp(section, "hosts ", 6);
}

static const char *digest_key(uint64_t *out, const char *value)
{
    char *end;
    *out = strtoull(value, &end, 16);
    return end == value || *end ? "not a digest of hexadecimal digits" : NULL;
}

static const char *whole_key(int *out, int max, const char *value)
{
    double x;
    if (!number(value, 1, max, &x) || x != floor(x))
        return "not a whole number in range";
    *out = (int)x;
    return NULL;
}

static const char *model_key(struct cluster *c, const char *key, const char *value)
{
    if (!strcmp(key, "target"))
        return digest_key(&c->target, value);
    if (!strcmp(key, "draft"))
        return digest_key(&c->draft, value);
    if (!strcmp(key, "layers"))
        return whole_key(&c->n_layer, LAYERS_MAX, value);
    if (!strcmp(key, "width"))
        return whole_key(&c->n_embd, 1 << 24, value);
    return "unknown key";
}

static const char *text_key(char *out, size_t room, const char *value)
{
    if (!*value || strlen(value) >= room)
        return "empty or too long";
    for (const char *p = value; *p; p++)
        if (!strchr("-._[]:@%", *p) && !(*p >= '0' && *p <= '9') && !((*p | 32) >= 'a' && (*p | 32) <= 'z'))
            return "letters, digits and -._:@ only";
    memcpy(out, value, strlen(value) + 1);
    return NULL;
}

static const char *host_key(struct cluster_host *h, const char *key, const char *value)
{
    if (!strcmp(key, "name"))
        return value[0] == '-' ? "must not begin with -" : text_key(h->name, sizeof h->name, value);
    if (!strcmp(key, "kernels"))
        return text_key(h->kernels, sizeof h->kernels, value);
    if (!strcmp(key, "cores"))
        return whole_key(&h->cores, 1 << 20, value);
    if (!strcmp(key, "memory_gb"))
        return number(value, 0, 1e9, &h->memory_gb) ? NULL : "not a number in range";
    struct curve *c = !strcmp(key, "layer_ms")   ? &h->layer
                      : !strcmp(key, "head_ms")  ? &h->head
                      : !strcmp(key, "draft_ms") ? &h->draft
                                                 : NULL;
    return c ? curve_read(c, value) : "unknown key";
}

static const char *link_key(struct cluster *c, const char *pair, const char *key, const char *value)
{
    int a, b;
    if (!index_at(&pair, &a) || !index_at(&pair, &b) || *pair || a == b)
        return "links have two hosts, counted from 0, as in [hosts 0 1]";
    struct cluster_link *l = &c->link[PD_MIN(a, b)][PD_MAX(a, b)];
    bool latency = !strcmp(key, "latency_us");
    if (!latency && strcmp(key, "bandwidth_gbps") != 0)
        return "unknown key";
    if (!number(value, latency ? 0 : 1e-6, 1e9, latency ? &l->latency_us : &l->gbps))
        return "not a number in range";
    c->link[PD_MAX(a, b)][PD_MIN(a, b)] = *l;
    return NULL;
}

const char *cluster_key(struct cluster *c, const char *section, const char *key, const char *value)
{
    int i;
    if (!strcmp(section, "cluster"))
        return model_key(c, key, value);
    if (!strncmp(section, "hosts ", 6))
        return link_key(c, section + 6, key, value);
    section += 5;
    if (!index_at(&section, &i) || *section)
        return "hosts are counted from 0 to 63";
    c->n = PD_MAX(c->n, i + 1);
    return host_key(&c->host[i], key, value);
}

enum pd_status cluster_check(const struct cluster *c, const char *name, struct pd_error *err)
{
    for (int i = 0; i < c->n; i++) {
        const struct cluster_host *h = &c->host[i];
        const char *missing = !h->name[0]     ? "name"
                              : !h->layer.n   ? "layer_ms"
                              : !h->head.n    ? "head_ms"
                              : !h->cores     ? "cores"
                              : !h->memory_gb ? "memory_gb"
                                              : NULL;
        if (missing)
            return error_set(err, PD_ERR_PROFILE, "%s: [host %d] %s: missing", name, i, missing);
        for (int k = 0; k < i; k++)
            if (!strcmp(h->name, c->host[k].name))
                return error_set(err, PD_ERR_PROFILE, "%s: [host %d] name: %s is host %d already", name, i,
                                 h->name, k);
        for (int k = i + 1; k < c->n; k++)
            if (!(c->link[i][k].gbps > 0))
                return error_set(err, PD_ERR_PROFILE, "%s: [hosts %d %d] bandwidth_gbps: missing", name, i,
                                 k);
    }
    if (c->n && (!c->n_layer || !c->n_embd))
        return error_set(err, PD_ERR_PROFILE, "%s: [cluster] layers and width: missing", name);
    return PD_OK;
}

/* ---- writing ---- */

void curve_write(const struct curve *c, FILE *f)
{
    for (int i = 0; i < c->n; i++)
        fprintf(f, "%s%d:%.4g", i ? " " : "", c->rows[i], c->ms[i]);
}

static void write_curve(const char *key, const struct curve *c, FILE *f)
{
    if (!c->n)
        return;
    fprintf(f, "%s = ", key);
    curve_write(c, f);
    fputc('\n', f);
}

static void write_host(const struct cluster_host *h, int i, FILE *f)
{
    fprintf(f, "\n[host %d]\nname = %s\n", i, h->name);
    if (h->kernels[0])
        fprintf(f, "kernels = %s\n", h->kernels);
    fprintf(f, "cores = %d\nmemory_gb = %.2f\n", h->cores, h->memory_gb);
    write_curve("layer_ms", &h->layer, f);
    write_curve("head_ms", &h->head, f);
    write_curve("draft_ms", &h->draft, f);
}

/* What --profile takes: a stage a host. */
static void write_stages(const struct cluster *c, FILE *f)
{
    const double layers = (double)c->n_layer / c->n;
    double latency = 0, gbps = c->n > 1 ? c->link[0][1].gbps : 10;
    for (int i = 0; i + 1 < c->n; i++) {
        latency = PD_MAX(latency, c->link[i][i + 1].latency_us);
        gbps = PD_MIN(gbps, c->link[i][i + 1].gbps);
    }
    fprintf(f, "\n[profile]\nstages = %d\nscale = model\n", c->n);
    for (int i = 0; i < c->n; i++) {
        struct curve stage = c->host[i].layer;
        curve_scale(&stage, layers);
        fprintf(f, "\n[stage %d]\n", i);
        write_curve("step_ms", &stage, f);
    }
    fprintf(f, "\n[head]\nms = %.4g\n\n[draft]\n", curve_ms(&c->host[c->n - 1].head, 1));
    write_curve("step_ms", c->host[0].draft.n ? &c->host[0].draft : &c->host[0].layer, f);
    fprintf(f, "\n[link]\nlatency_us = %.4g\nbandwidth_gbps = %.4g\n", latency, gbps);
}

void cluster_write(const struct cluster *c, FILE *f)
{
    fprintf(f, "[cluster]\nlayers = %d\nwidth = %d\n", c->n_layer, c->n_embd);
    if (c->target)
        fprintf(f, "target = %016llx\n", (unsigned long long)c->target);
    if (c->draft)
        fprintf(f, "draft = %016llx\n", (unsigned long long)c->draft);
    for (int i = 0; i < c->n; i++)
        write_host(&c->host[i], i, f);
    for (int i = 0; i < c->n; i++)
        for (int k = i + 1; k < c->n; k++)
            fprintf(f, "\n[hosts %d %d]\nlatency_us = %.4g\nbandwidth_gbps = %.4g\n", i, k,
                    c->link[i][k].latency_us, c->link[i][k].gbps);
    write_stages(c, f);
}

void profile_write(const struct profile *p, FILE *f)
{
    fprintf(f, "[profile]\nstages = %d\nstop_ms = %.4g\n", p->n_stages, p->stop_ms);
    if (p->experts.count)
        fprintf(f, "experts = %d,%d,%.4g\n", p->experts.count, p->experts.used, p->experts.share);
    else if (p->experts.measured)
        fputs("experts = measured\n", f);
    for (int i = 0; i < p->n_stages; i++) {
        fprintf(f, "\n[stage %d]\n", i);
        write_curve("step_ms", &p->stage[i], f);
    }
    if (p->prefill.n) {
        fputs("\n[prefill]\n", f);
        write_curve("step_ms", &p->prefill, f);
    }
    fprintf(f, "\n[head]\nms = %.4g\n\n[draft]\n", p->head_ms);
    write_curve("step_ms", &p->draft, f);
    fprintf(f, "\n[link]\nlatency_us = %.4g\nbandwidth_gbps = %.4g\ncontrol_us = %.4g\nrow_bytes = %d\n",
            p->link_latency_us, p->link_gbps, p->control_latency_us, p->row_bytes);
    for (int i = 0; i < p->n_stages; i++)
        if (p->hop[i].gbps > 0) {
            if (i)
                fprintf(f, "\n[link %d]\n", i - 1);
            else
                fputs("\n[link draft]\n", f);
            fprintf(f, "latency_us = %.4g\nbandwidth_gbps = %.4g\n", p->hop[i].latency_us, p->hop[i].gbps);
        }
}
