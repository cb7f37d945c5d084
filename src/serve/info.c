/* What the server says of itself. */
#include "serve/front_impl.h"
#include "serve/page.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LANES = 256, IDS_MAX = 128 };

static struct backend_status *status_of(struct front *f)
{
    struct backend_status *s = mem_new(1, sizeof *s);
    backend_get_status(f->o.backend, s);
    if (atomic_load(&f->ending))
        s->state = BACKEND_ENDING;
    return s;
}

static const char *state_name(enum backend_state state)
{
    static const char *const names[] = {"loading", "ok", "restarting", "failed", "ending"};
    return (size_t)state < PD_COUNT(names) ? names[state] : "unknown";
}

static void finish(struct exchange *x, int code, yyjson_mut_doc *d)
{
    x->code = code;
    json_write(&x->answer, d, false);
}

/* The page's files: "/" is its HTML. Who has the very bytes is not sent them again. */
void route_page(struct front *f, struct exchange *x)
{
    const char *name = x->rest[0] ? x->rest : "index.html", *has = exchange_header(x, "If-None-Match");
    struct pd_error err;
    (void)f;
    for (size_t i = 0; i < page_n_files; i++) {
        const struct page_file *file = &page_files[i];
        if (strcmp(file->name, name) != 0)
            continue;
        x->type = file->type;
        x->etag = file->etag;
        x->code = has && strstr(has, file->etag) ? 304 : 200;
        if (x->code == 200)
            text_buf_add(&x->answer, (const char *)file->data, file->size, &err);
        return;
    }
    answer_error(x, 404, "the page has no such file");
}

static void put_progress(yyjson_mut_doc *d, yyjson_mut_val *o, const struct backend_status *s)
{
    yyjson_mut_obj_add_strcpy(d, o, "what", s->what);
    yyjson_mut_obj_add_int(d, o, "done", s->done);
    yyjson_mut_obj_add_int(d, o, "total", s->total);
    yyjson_mut_obj_add_real(d, o, "progress", s->total > 0 ? (double)s->done / (double)s->total : 0);
}

/* While the engine is started again requests are taken, so that is no failure. */
void route_health(struct front *f, struct exchange *x)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *o = json_object(&d);
    struct backend_status *s = status_of(f);
    const bool well = s->state == BACKEND_READY || s->state == BACKEND_RESTARTING;
    yyjson_mut_obj_add_str(d, o, "status", state_name(s->state));
    if (s->state != BACKEND_READY)
        put_progress(d, o, s);
    if (s->state == BACKEND_FAILED && s->retry_s >= 0)
        yyjson_mut_obj_add_real(d, o, "retry_in_s", s->retry_s);
    if (!well) {
        yyjson_mut_val *e = json_add(d, o, "error");
        yyjson_mut_obj_add_int(d, e, "code", 503);
        yyjson_mut_obj_add_strcpy(d, e, "message",
                                  s->state == BACKEND_LOADING  ? "the model is being loaded"
                                  : s->state == BACKEND_ENDING ? "the server is ending"
                                                               : s->what);
        yyjson_mut_obj_add_str(d, e, "type", "unavailable_error");
        x->retry_after_s = 1;
    }
    free(s);
    finish(x, well ? 200 : 503, d);
}

/* Of an engine that is given up until its next try. */
void route_restart(struct front *f, struct exchange *x)
{
    yyjson_mut_doc *d;
    if (!backend_retry(f->o.backend)) {
        answer_error(x, 409, "the engine has not failed: see /health");
        return;
    }
    yyjson_mut_val *o = json_object(&d);
    yyjson_mut_obj_add_str(d, o, "status", "starting");
    finish(x, 202, d);
}

static void put_model(yyjson_mut_doc *d, yyjson_mut_val *o, const struct front *f)
{
    const struct lexicon *l = f->o.lexicon;
    yyjson_mut_obj_add_strcpy(d, o, "id", l->id);
    yyjson_mut_obj_add_str(d, o, "object", "model");
    yyjson_mut_obj_add_int(d, o, "created", f->started_s);
    yyjson_mut_obj_add_str(d, o, "owned_by", "pipedec");
    yyjson_mut_val *m = json_add(d, o, "meta");
    yyjson_mut_obj_add_int(d, m, "n_vocab", l->n_vocab);
    yyjson_mut_obj_add_int(d, m, "n_ctx", l->n_ctx);
    yyjson_mut_obj_add_int(d, m, "n_ctx_train", l->n_ctx_train);
    yyjson_mut_obj_add_int(d, m, "n_embd", l->n_embd);
    yyjson_mut_obj_add_uint(d, m, "size", l->bytes);
}

void route_models(struct front *f, struct exchange *x)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *o = json_object(&d);
    if (x->rest[0] && strcmp(x->rest, f->o.lexicon->id) != 0) {
        yyjson_mut_doc_free(d);
        answer_error(x, 404, "no model is called that: see /v1/models");
        return;
    }
    if (x->rest[0]) {
        put_model(d, o, f);
    } else {
        yyjson_mut_val *m = yyjson_mut_obj(d);
        put_model(d, m, f);
        yyjson_mut_obj_add_str(d, o, "object", "list");
        yyjson_mut_arr_add_val(json_list(d, o, "data"), m);
    }
    finish(x, 200, d);
}

static void put_sampling(yyjson_mut_doc *d, yyjson_mut_val *o, const struct pd_sampling *s)
{
    yyjson_mut_obj_add_real(d, o, "temperature", (double)s->temperature);
    yyjson_mut_obj_add_int(d, o, "top_k", s->top_k);
    yyjson_mut_obj_add_real(d, o, "top_p", (double)s->top_p);
    yyjson_mut_obj_add_real(d, o, "min_p", (double)s->min_p);
    yyjson_mut_obj_add_real(d, o, "repeat_penalty", (double)s->repeat_penalty);
    yyjson_mut_obj_add_int(d, o, "repeat_last_n", s->repeat_last_n);
    yyjson_mut_obj_add_real(d, o, "presence_penalty", (double)s->presence_penalty);
    yyjson_mut_obj_add_real(d, o, "frequency_penalty", (double)s->frequency_penalty);
    yyjson_mut_obj_add_real(d, o, "top_n_sigma", (double)s->top_n_sigma);
    yyjson_mut_obj_add_real(d, o, "typical_p", (double)s->typical_p);
    yyjson_mut_obj_add_real(d, o, "xtc_probability", (double)s->xtc_probability);
    yyjson_mut_obj_add_real(d, o, "xtc_threshold", (double)s->xtc_threshold);
    yyjson_mut_obj_add_real(d, o, "dynatemp_range", (double)s->dynatemp_range);
    yyjson_mut_obj_add_real(d, o, "dynatemp_exponent", (double)s->dynatemp_exponent);
    yyjson_mut_obj_add_real(d, o, "dry_multiplier", (double)s->dry_multiplier);
    yyjson_mut_obj_add_real(d, o, "dry_base", (double)s->dry_base);
    yyjson_mut_obj_add_int(d, o, "dry_allowed_length", s->dry_allowed_length);
    yyjson_mut_obj_add_int(d, o, "dry_penalty_last_n", s->dry_penalty_last_n);
}

static void put_piece(yyjson_mut_doc *d, yyjson_mut_val *o, const char *key, const struct lexicon *l,
                      int32_t id)
{
    struct text_buf piece = {0};
    lexicon_piece(l, id, &piece);
    json_text_of(d, o, key, piece.data, piece.size);
    text_buf_free(&piece);
}

void route_props(struct front *f, struct exchange *x)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *o = json_object(&d), *v;
    const struct lexicon *l = f->o.lexicon;
    struct backend_status *s = status_of(f);
    v = json_add(d, o, "default_generation_settings");
    yyjson_mut_obj_add_int(d, v, "n_ctx", l->n_ctx);
    put_sampling(d, json_add(d, v, "params"), &f->o.sampling);
    yyjson_mut_obj_add_int(d, o, "total_slots", s->parallel);
    yyjson_mut_obj_add_strcpy(d, o, "model_alias", l->id);
    yyjson_mut_obj_add_strcpy(d, o, "model_name", l->name);
    yyjson_mut_obj_add_strcpy(d, o, "model_arch", l->arch);
    yyjson_mut_obj_add_strcpy(d, o, "draft_name", s->draft_name);
    yyjson_mut_obj_add_strcpy(d, o, "mode", s->mode);
    yyjson_mut_obj_add_int(d, o, "stages", s->n_stages);
    const char *text = gguf_cstr(l->file, "tokenizer.chat_template", "");
    json_text_of(d, o, "chat_template", text, strlen(text));
    yyjson_mut_obj_add_str(d, o, "chat_template_family", l->chat ? chat_template_name(l->chat) : "");
    put_piece(d, o, "bos_token", l, tokenizer_bos(l->tokenizer));
    put_piece(d, o, "eos_token", l, tokenizer_eos(l->tokenizer));
    v = json_add(d, o, "modalities");
    yyjson_mut_obj_add_bool(d, v, "vision", false);
    yyjson_mut_obj_add_bool(d, v, "audio", false);
    yyjson_mut_obj_add_str(d, o, "build_info", "pipedec " PD_VERSION);
    free(s);
    finish(x, 200, d);
}

static yyjson_mut_val *lane_object(yyjson_mut_doc *d, const struct backend_lane *l)
{
    yyjson_mut_val *o = yyjson_mut_obj(d);
    yyjson_mut_obj_add_uint(d, o, "id_task", l->id);
    yyjson_mut_obj_add_strcpy(d, o, "name", l->name);
    yyjson_mut_obj_add_bool(d, o, "is_processing", l->running);
    yyjson_mut_obj_add_int(d, o, "n_prompt_tokens", l->prompt_tokens);
    yyjson_mut_obj_add_int(d, o, "n_decoded", l->tokens);
    yyjson_mut_obj_add_int(d, o, "n_max", l->max_tokens);
    yyjson_mut_obj_add_real(d, o, "age_s", l->age_s);
    return o;
}

/* As many as there are lanes: those that are taken, then the free ones. */
void route_slots(struct front *f, struct exchange *x)
{
    yyjson_mut_doc *d = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *list = yyjson_mut_arr(d);
    struct backend_status *s = status_of(f);
    struct backend_lane *lanes = mem_new(LANES, sizeof *lanes);
    const size_t n = backend_lanes(f->o.backend, lanes, LANES);
    int slot = 0;
    yyjson_mut_doc_set_root(d, list);
    for (size_t i = 0; i < n; i++)
        if (lanes[i].running) {
            yyjson_mut_val *o = lane_object(d, &lanes[i]);
            yyjson_mut_obj_add_int(d, o, "id", slot++);
            yyjson_mut_obj_add_int(d, o, "n_ctx", f->o.lexicon->n_ctx);
            yyjson_mut_arr_add_val(list, o);
        }
    for (; slot < s->parallel; slot++) {
        yyjson_mut_val *o = yyjson_mut_obj(d);
        yyjson_mut_obj_add_int(d, o, "id", slot);
        yyjson_mut_obj_add_int(d, o, "n_ctx", f->o.lexicon->n_ctx);
        yyjson_mut_obj_add_bool(d, o, "is_processing", false);
        yyjson_mut_arr_add_val(list, o);
    }
    free(lanes);
    free(s);
    finish(x, 200, d);
}

static void put_counts(yyjson_mut_doc *d, yyjson_mut_val *o, const struct backend_status *s)
{
    const struct {
        const char *key;
        uint64_t value;
    } all[] = {{"requests", s->requests},
               {"prompt_tokens", s->prompt_tokens},
               {"kept_tokens", s->kept_tokens},
               {"tokens", s->tokens},
               {"rows", s->rows},
               {"prompt_rows", s->prompt_rows},
               {"batches", s->batches},
               {"drafted", s->drafted},
               {"accepted", s->accepted},
               {"hits", s->hits},
               {"late", s->late},
               {"misses", s->misses}};
    for (size_t i = 0; i < PD_COUNT(all); i++)
        yyjson_mut_obj_add_uint(d, o, all[i].key, all[i].value);
}

/* What the page draws. */
void route_pipeline(struct front *f, struct exchange *x)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *o = json_object(&d);
    struct backend_status *s = status_of(f);
    struct backend_lane *lanes = mem_new(LANES, sizeof *lanes);
    const size_t n = backend_lanes(f->o.backend, lanes, LANES);
    yyjson_mut_obj_add_str(d, o, "state", state_name(s->state));
    put_progress(d, o, s);
    yyjson_mut_obj_add_strcpy(d, o, "model", f->o.lexicon->id);
    yyjson_mut_obj_add_strcpy(d, o, "draft", s->draft_name);
    yyjson_mut_obj_add_strcpy(d, o, "mode", s->mode);
    yyjson_mut_obj_add_strcpy(d, o, "note", f->o.note ? f->o.note : "");
    yyjson_mut_obj_add_int(d, o, "n_ctx", f->o.lexicon->n_ctx);
    yyjson_mut_obj_add_int(d, o, "parallel", s->parallel);
    yyjson_mut_obj_add_int(d, o, "running", s->running);
    yyjson_mut_obj_add_int(d, o, "waiting", s->waiting);
    yyjson_mut_obj_add_int(d, o, "starts", s->starts);
    yyjson_mut_obj_add_int(d, o, "time_ms", front_ns() / 1000000);
    put_counts(d, o, s);
    yyjson_mut_obj_add_real(d, o, "draft_busy_s", s->draft_busy_s);
    yyjson_mut_obj_add_real(d, o, "uptime_s", s->uptime_s);
    yyjson_mut_val *list = json_list(d, o, "stages");
    for (int i = 0; i < s->n_stages && i < BACKEND_STAGES; i++) {
        yyjson_mut_val *stage = yyjson_mut_obj(d);
        yyjson_mut_obj_add_real(d, stage, "busy", s->stages[i].busy_share);
        yyjson_mut_obj_add_uint(d, stage, "rows", s->stages[i].rows);
        yyjson_mut_obj_add_uint(d, stage, "batches", s->stages[i].batches);
        yyjson_mut_arr_add_val(list, stage);
    }
    list = json_list(d, o, "links");
    for (int i = 0; i <= s->n_stages && i <= BACKEND_STAGES && s->n_stages; i++) {
        yyjson_mut_val *link = yyjson_mut_obj(d);
        yyjson_mut_obj_add_uint(d, link, "sent", s->links[i].sent);
        yyjson_mut_obj_add_uint(d, link, "received", s->links[i].received);
        yyjson_mut_arr_add_val(list, link);
    }
    list = json_list(d, o, "requests_now");
    for (size_t i = 0; i < n; i++)
        yyjson_mut_arr_add_val(list, lane_object(d, &lanes[i]));
    free(lanes);
    free(s);
    finish(x, 200, d);
}

void route_metrics(struct front *f, struct exchange *x)
{
    struct backend_status *s = status_of(f);
    metrics_write(&f->metrics, s, &x->answer);
    x->code = 200;
    x->type = "text/plain; version=0.0.4; charset=utf-8";
    free(s);
}

/* ---- a request by its id ---- */

struct request_state {
    struct reply_choice choices[API_CHOICES];
    struct reply_head head;
    size_t n;
    bool ended;
    struct pd_error error;
    struct arena arena;
    bool parted, one_call; /* replies are taken apart, so: */
    struct calls_options parts;
};

static void read_parts(yyjson_val *p, struct request_state *r)
{
    yyjson_arr_iter it = yyjson_arr_iter_with(yyjson_obj_get(p, "names"));
    const int64_t family = yyjson_get_sint(yyjson_obj_get(p, "family"));
    r->parted = yyjson_is_obj(p) && family >= CALLS_NONE && family < CALLS_FAMILIES;
    if (!r->parted)
        return;
    const char **names =
        arena_take(&r->arena, (yyjson_arr_size(yyjson_obj_get(p, "names")) + 1) * sizeof *names);
    for (yyjson_val *v; (v = yyjson_arr_iter_next(&it));)
        if (json_text(v))
            names[r->parts.n_names++] = arena_strdup(&r->arena, yyjson_get_str(v));
    r->parts.names = names;
    r->parts.family = (enum calls_family)family;
    r->parts.reasoning = yyjson_is_true(yyjson_obj_get(p, "reasoning"));
    r->parts.reasons = yyjson_is_true(yyjson_obj_get(p, "reasons"));
    r->one_call = yyjson_is_true(yyjson_obj_get(p, "one_call"));
}

/* What the front noted when the request began. */
static bool read_note(const char *note, struct request_state *r)
{
    struct reply_head *h = &r->head;
    yyjson_doc *doc = note ? yyjson_read(note, strlen(note), 0) : NULL;
    yyjson_val *o = yyjson_doc_get_root(doc);
    const int64_t form = yyjson_get_sint(yyjson_obj_get(o, "form"));
    const int64_t choices = yyjson_get_sint(yyjson_obj_get(o, "choices"));
    h->form = (enum api_form)form;
    h->created = yyjson_get_sint(yyjson_obj_get(o, "created"));
    h->n = (int)yyjson_get_sint(yyjson_obj_get(o, "n"));
    r->n = (size_t)choices;
    read_parts(yyjson_obj_get(o, "parts"), r);
    yyjson_doc_free(doc);
    return form >= API_CHAT && form <= API_PLAIN && choices >= 1 && choices <= API_CHOICES && h->n >= 1;
}

/* One choice from the backend; false: it is not there. */
static bool fetch(struct front *f, const char *name, size_t i, struct request_state *r)
{
    char full[64];
    struct backend_found found;
    snprintf(full, sizeof full, "%s.%zu", name, i);
    if (!backend_find(f->o.backend, full, &found))
        return false;
    bool fine = i > 0 || read_note(found.note, r);
    struct reply_choice *c = &r->choices[i];
    c->index = (int)i;
    c->reason = found.reason;
    c->stats = found.stats;
    c->text = (struct text_buf){found.text, found.text_size, found.text_size};
    c->tokens = (struct token_list){found.tokens, found.n_tokens, found.n_tokens};
    found.text = NULL;
    found.tokens = NULL;
    if (fine && r->parted) {
        reply_parts_begin(c, &r->parts, r->one_call);
        reply_parts_replay(c, f->o.lexicon);
        if (c->parts->enough && c->reason == PD_REASON_CANCELLED) /* by us */
            c->reason = PD_REASON_END;
    }
    r->ended &= found.ended;
    if (found.error.status && !r->error.status)
        r->error = found.error;
    else if (found.ended && c->reason == PD_REASON_CANCELLED && !r->error.status)
        error_fill(&r->error, PD_ERR_CANCELLED, "the request was cancelled");
    backend_found_free(&found);
    return fine;
}

static void show(struct exchange *x, const struct request_state *r)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *o = json_object(&d);
    const char *state = r->error.status ? "failed" : r->ended ? "done" : "running";
    yyjson_mut_obj_add_str(d, o, "object", "request");
    yyjson_mut_obj_add_strcpy(d, o, "id", r->head.id);
    yyjson_mut_obj_add_str(d, o, "status", state);
    if (r->error.status) {
        yyjson_mut_val *e = json_add(d, o, "error");
        yyjson_mut_obj_add_int(d, e, "code", reply_code(r->error.status));
        yyjson_mut_obj_add_strcpy(d, e, "message", r->error.text);
    }
    reply_whole_in(d, json_add(d, o, "response"), &r->head, r->choices, r->n);
    finish(x, 200, d);
}

void route_request(struct front *f, struct exchange *x)
{
    struct request_state *r = mem_new(1, sizeof *r);
    const char *name = x->rest;
    static const char *const prefixes[] = {"chatcmpl-", "cmpl-", "req-"};
    for (size_t i = 0; i < PD_COUNT(prefixes); i++)
        if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0) {
            name += strlen(prefixes[i]);
            break;
        }
    r->head = (struct reply_head){.lexicon = f->o.lexicon, .id = x->rest};
    r->ended = true;
    r->n = 1;
    bool found = strlen(name) < FRONT_NAME;
    for (size_t i = 0; i < r->n && found; i++)
        found = fetch(f, name, i, r);
    if (found)
        show(x, r);
    else
        answer_error(x, 404, "no request of this id runs, or has ended in the last hour");
    for (size_t i = 0; i < API_CHOICES; i++)
        reply_choice_free(&r->choices[i]);
    arena_free(&r->arena);
    free(r);
}
