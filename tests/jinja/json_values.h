/* json_values: JSON as values of a template. */
#ifndef PD_TEST_JSON_VALUES_H
#define PD_TEST_JSON_VALUES_H

#include "jinja/jinja.h"

#include <yyjson.h>

/* Strings of `foreign` values are marked, those of keys are not. */
static inline struct jinja_value json_value(struct arena *a, yyjson_val *v, bool foreign)
{
    size_t i, n;
    yyjson_val *key, *item;
    struct jinja_value out;
    switch (yyjson_get_tag(v)) {
    case YYJSON_TYPE_STR | YYJSON_SUBTYPE_NONE:
    case YYJSON_TYPE_STR | YYJSON_SUBTYPE_NOESC:
        return jinja_text(a, yyjson_get_str(v), yyjson_get_len(v), foreign);
    case YYJSON_TYPE_BOOL | YYJSON_SUBTYPE_TRUE:
    case YYJSON_TYPE_BOOL | YYJSON_SUBTYPE_FALSE:
        return jinja_bool(yyjson_get_bool(v));
    case YYJSON_TYPE_NUM | YYJSON_SUBTYPE_REAL:
        return jinja_float(yyjson_get_real(v));
    case YYJSON_TYPE_NUM | YYJSON_SUBTYPE_UINT:
    case YYJSON_TYPE_NUM | YYJSON_SUBTYPE_SINT:
        return jinja_int(yyjson_get_sint(v));
    case YYJSON_TYPE_ARR | YYJSON_SUBTYPE_NONE:
        out = jinja_list(a);
        yyjson_arr_foreach(v, i, n, item) jinja_add(a, out, json_value(a, item, foreign));
        return out;
    case YYJSON_TYPE_OBJ | YYJSON_SUBTYPE_NONE:
        out = jinja_dict(a);
        yyjson_obj_foreach(v, i, n, key, item)
            jinja_set_key(a, out, json_value(a, key, false), json_value(a, item, foreign));
        return out;
    default:
        return jinja_none();
    }
}

#endif
