/* Endpoints. */
#include "serve/front_impl.h"

#include <stdio.h>
#include <string.h>

static void route_chat(struct front *f, struct exchange *x)
{
    flow_begin(f, x, API_CHAT);
}

static void route_completion(struct front *f, struct exchange *x)
{
    flow_begin(f, x, API_COMPLETION);
}

static void route_plain(struct front *f, struct exchange *x)
{
    flow_begin(f, x, API_PLAIN);
}

static void route_none(struct front *f, struct exchange *x)
{
    (void)f;
    answer_error(x, 501, "this server generates text; embeddings and reranking are not among what it does");
}

/* Browsers ask for one before they have read that the page names its own. */
static void route_no_icon(struct front *f, struct exchange *x)
{
    (void)f;
    x->code = 204;
}

/* A star at the end of a path stands for one more part. */
static const struct route routes[] = {
    {"/", "GET", true, route_page},
    {"/page/*", "GET", true, route_page},
    {"/favicon.ico", "GET", true, route_no_icon},
    {"/health", "GET", true, route_health},
    {"/v1/health", "GET", true, route_health},
    {"/models", "GET", true, route_models},
    {"/v1/models", "GET", true, route_models},
    {"/v1/models/*", "GET", true, route_models},
    {"/props", "GET", false, route_props},
    {"/slots", "GET", false, route_slots},
    {"/pipeline", "GET", false, route_pipeline},
    {"/pipeline/events", "GET", false, route_events},
    {"/metrics", "GET", false, route_metrics},
    {"/v1/requests/*", "GET", false, route_request},
    {"/v1/chat/completions", "POST", false, route_chat},
    {"/chat/completions", "POST", false, route_chat},
    {"/v1/completions", "POST", false, route_completion},
    {"/completion", "POST", false, route_plain},
    {"/completions", "POST", false, route_plain},
    {"/v1/engine/restart", "POST", false, route_restart},
    {"/tokenize", "POST", false, route_tokenize},
    {"/detokenize", "POST", false, route_detokenize},
    {"/apply-template", "POST", false, route_template},
    {"/embedding", "POST", false, route_none},
    {"/embeddings", "POST", false, route_none},
    {"/v1/embeddings", "POST", false, route_none},
    {"/rerank", "POST", false, route_none},
    {"/reranking", "POST", false, route_none},
    {"/v1/rerank", "POST", false, route_none},
    {"/v1/reranking", "POST", false, route_none},
};

static bool matches(const char *pattern, const char *path, char rest[FRONT_PATH])
{
    const size_t n = strlen(pattern);
    rest[0] = 0;
    if (pattern[n - 1] != '*')
        return strcmp(pattern, path) == 0;
    if (strncmp(pattern, path, n - 1) != 0 || !path[n - 1] || strchr(path + n - 1, '/') ||
        strlen(path + n - 1) >= FRONT_PATH)
        return false;
    snprintf(rest, FRONT_PATH, "%s", path + n - 1);
    return true;
}

const struct route *route_find(const char *method, const char *path, char rest[FRONT_PATH],
                               const char **allow)
{
    *allow = NULL;
    for (size_t i = 0; i < PD_COUNT(routes); i++)
        if (matches(routes[i].path, path, rest)) {
            if (strcmp(method, routes[i].method) == 0)
                return &routes[i];
            *allow = routes[i].method[0] == 'G' ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
        }
    return NULL;
}
