/* Fields of a JSON object with their types and ranges. */
#include "serve/api.h"

#include <stdio.h>
#include <string.h>

void field_fail(struct fields *f, enum pd_status status, const char *name, const char *fmt, ...)
{
    char text[400];
    va_list args;
    if (f->status)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    f->status = error_set(f->err, status, "%s: %s", name, text);
}

static const char *kind(yyjson_val *v)
{
    if (yyjson_is_str(v))
        return json_text(v) ? "a string" : "a string with a NUL character";
    return yyjson_is_obj(v)    ? "an object"
           : yyjson_is_arr(v)  ? "a list"
           : yyjson_is_bool(v) ? "true or false"
           : yyjson_is_num(v)  ? "a number"
                               : "null";
}

yyjson_val *field_get(const struct fields *f, const char *name)
{
    yyjson_val *v = f->status ? NULL : yyjson_obj_get(f->object, name);
    return v && !yyjson_is_null(v) ? v : NULL;
}

void field_bool(struct fields *f, const char *name, bool *out)
{
    yyjson_val *v = field_get(f, name);
    if (!v)
        return;
    if (!yyjson_is_bool(v))
        field_fail(f, PD_ERR_USAGE, name, "give true or false, not %s", kind(v));
    else
        *out = yyjson_get_bool(v);
}

/* 12.0 is a whole number too: some clients know no others. */
static bool whole(yyjson_val *v, int64_t *out)
{
    if (yyjson_is_sint(v))
        *out = yyjson_get_sint(v);
    else if (yyjson_is_uint(v) && yyjson_get_uint(v) <= INT64_MAX)
        *out = (int64_t)yyjson_get_uint(v);
    else if (yyjson_is_real(v) && yyjson_get_real(v) >= -9e15 && yyjson_get_real(v) <= 9e15 &&
             yyjson_get_real(v) == (double)(int64_t)yyjson_get_real(v))
        *out = (int64_t)yyjson_get_real(v);
    else
        return false;
    return true;
}

void field_int(struct fields *f, const char *name, int64_t min, int64_t max, int64_t *out)
{
    int64_t value;
    yyjson_val *v = field_get(f, name);
    if (!v)
        return;
    if (!yyjson_is_num(v))
        field_fail(f, PD_ERR_USAGE, name, "give a whole number, not %s", kind(v));
    else if (!whole(v, &value) || value < min || value > max)
        field_fail(f, PD_ERR_USAGE, name, "give a whole number from %lld to %lld", (long long)min,
                   (long long)max);
    else
        *out = value;
}

void field_float(struct fields *f, const char *name, double min, double max, float *out)
{
    yyjson_val *v = field_get(f, name);
    if (!v)
        return;
    const double value = yyjson_get_num(v);
    if (!yyjson_is_num(v))
        field_fail(f, PD_ERR_USAGE, name, "give a number, not %s", kind(v));
    else if (!(value >= min && value <= max))
        field_fail(f, PD_ERR_USAGE, name, "give a number from %g to %g", min, max);
    else
        *out = (float)value;
}

bool json_text(yyjson_val *v)
{
    return yyjson_is_str(v) && strlen(yyjson_get_str(v)) == yyjson_get_len(v);
}

void field_text(struct fields *f, const char *name, const char **out)
{
    yyjson_val *v = field_get(f, name);
    if (!v)
        return;
    if (!json_text(v))
        field_fail(f, PD_ERR_USAGE, name, "give a string, not %s", kind(v));
    else
        *out = yyjson_get_str(v);
}

void field_tokens(struct fields *f, const struct field_list *l, struct arena *a, const int32_t **out,
                  size_t *n)
{
    yyjson_arr_iter it;
    yyjson_arr_iter_init(l->array, &it);
    int32_t *ids = arena_take(a, (yyjson_arr_size(l->array) + 1) * sizeof *ids);
    size_t count = 0;
    int64_t id;
    for (yyjson_val *v; (v = yyjson_arr_iter_next(&it)) && !f->status;) {
        if (!yyjson_is_num(v) || !whole(v, &id) || id < 0 || id >= l->n_vocab)
            field_fail(f, PD_ERR_USAGE, l->name, "element %zu is no token: give whole numbers from 0 to %d",
                       count, l->n_vocab - 1);
        else
            ids[count++] = (int32_t)id;
    }
    *out = ids;
    *n = count;
}

yyjson_val *api_object(yyjson_doc **doc, const char *body, size_t size, struct pd_error *err)
{
    yyjson_read_err e = {0};
    /* The reader only reads with these flags. */
    *doc = size ? yyjson_read_opts((char *)(uintptr_t)body, size, YYJSON_READ_NOFLAG, NULL, &e) : NULL;
    if (!*doc) {
        error_set(err, PD_ERR_USAGE, "the body is no JSON: %s at byte %zu", size ? e.msg : "it is empty",
                  e.pos + 1);
        return NULL;
    }
    yyjson_val *root = yyjson_doc_get_root(*doc);
    if (yyjson_is_obj(root))
        return root;
    error_set(err, PD_ERR_USAGE, "the body is %s: give a JSON object", kind(root));
    yyjson_doc_free(*doc);
    *doc = NULL;
    return NULL;
}
