/* needs: grammar base */
/* JSON schemas: which texts their grammars take, and what is refused, where. (What grammars give is validated by Python's
 * jsonschema in tests/cli/test_schema.sh.) */
#include "grammar/grammar.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static bool accepts(const char *schema, const char *text)
{
    struct grammar *g;
    struct pd_error err = {0};
    char *written;
    if (grammar_from_schema(&written, schema, strlen(schema), &err))
        fail_msg("%s: %s", schema, err.text);
    assert_int_equal(grammar_compile(&g, written, strlen(written), &err), PD_OK);
    struct grammar_run *r = grammar_run_new(g, NULL);
    struct grammar_state s = grammar_bytes(r, grammar_start(r), text, strlen(text));
    bool yes = grammar_can_end(r, s);
    grammar_run_free(r);
    grammar_free(g);
    free(written);
    return yes;
}

static void takes(void **state)
{
    static const struct {
        const char *schema, *text;
        bool valid;
    } cases[] = {
        {"{\"type\":\"integer\",\"minimum\":-3,\"maximum\":120}", "120", true},
        {"{\"type\":\"integer\",\"minimum\":-3,\"maximum\":120}", "-3", true},
        {"{\"type\":\"integer\",\"minimum\":-3,\"maximum\":120}", "121", false},
        {"{\"type\":\"integer\",\"minimum\":-3,\"maximum\":120}", "-4", false},
        {"{\"type\":\"integer\",\"minimum\":-3,\"maximum\":120}", "007", false},
        {"{\"type\":\"number\",\"exclusiveMinimum\":0,\"maximum\":1.5}", "0.001", true},
        {"{\"type\":\"number\",\"exclusiveMinimum\":0,\"maximum\":1.5}", "0.0", false},
        {"{\"type\":\"number\",\"exclusiveMinimum\":0,\"maximum\":1.5}", "1.5", true},
        {"{\"type\":\"number\",\"exclusiveMinimum\":0,\"maximum\":1.5}", "1.51", false},
        {"{\"type\":\"number\",\"exclusiveMaximum\":0}", "", false},
        {"{\"type\":\"number\",\"exclusiveMaximum\":0}", "-0.5", true},
        {"{\"type\":\"number\",\"exclusiveMaximum\":0}", "0", false},
        {"{\"type\":\"string\",\"maxLength\":2}", "\"\xF0\x9F\x98\x80\\n\"", true},
        {"{\"type\":\"string\",\"maxLength\":2}", "\"abc\"", false},
        {"{\"type\":\"string\"}", "\"\\uD83D\\uDE00\"", true},
        {"{\"type\":\"string\"}", "\"\\uD83D\"", false},
        {"{\"type\":\"string\",\"pattern\":\"^a.\\\\d$\"}", "\"ab1\"", true},
        {"{\"type\":\"string\",\"pattern\":\"^a.\\\\d$\"}", "\"a\\\"1\"", true},
        {"{\"type\":\"string\",\"pattern\":\"^a.\\\\d$\"}", "\"ab\"", false},
        {"{\"type\":\"string\",\"pattern\":\"b\"}", "\"abc\"", true},
        {"{\"type\":\"string\",\"format\":\"date\"}", "\"2024-02-30\"", false},
        {"{\"type\":\"string\",\"format\":\"date\"}", "\"2024-12-31\"", true},
        {"{\"type\":\"string\",\"format\":\"ipv4\"}", "\"256.1.1.1\"", false},
        {"{\"enum\":[\"a\",1,null,[1, 2]]}", "[1, 2]", true},
        {"{\"enum\":[\"a\",1,null]}", "\"b\"", false},
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}},"
         "\"required\":[\"b\"]}",
         "{\"b\": null}", true},
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}},"
         "\"required\":[\"b\"]}",
         "{\"a\": null, \"b\": null}", true},
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}},"
         "\"required\":[\"b\"]}",
         "{\"b\": null, \"a\": null}", false},
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"}},\"additionalProperties\":{"
         "\"const\":1}}",
         "{\"ab\": 1, \"b\": 1}", true},
        /* a second "a" would be read in place of the first */
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"}},\"additionalProperties\":{"
         "\"const\":1}}",
         "{\"a\": null, \"a\": 1}", false},
        {"{\"type\":\"object\",\"required\":[\"z\"],\"additionalProperties\":{\"const\":1}}", "{\"z\": 2}",
         false},
        {"{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":false}", "[1]", true},
        {"{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"minItems\":2}", "[1]", false},
        {"{\"type\":\"array\",\"items\":{\"const\":1},\"minItems\":2,\"maxItems\":3}", "[1, 1, 1]", true},
        {"{\"type\":\"array\",\"items\":{\"const\":1},\"minItems\":2,\"maxItems\":3}", "[1]", false},
        {"{\"type\":\"object\"}", "{\"a\": [1, {\"b\": \"c\"}, true]}", true},
        {"true", "[null]", true},
        {"{\"$ref\":\"#/$defs/a~1b\",\"$defs\":{\"a/b\":{\"type\":\"boolean\"}}}", "true", true},
        {"{\"type\":[\"integer\",\"null\"],\"minimum\":5}", "null", true},
        {"{\"type\":[\"integer\",\"null\"],\"minimum\":5}", "4", false},
    };
    (void)state;
    for (size_t i = 0; i < PD_COUNT(cases); i++)
        if (accepts(cases[i].schema, cases[i].text) != cases[i].valid)
            fail_msg("%s: '%s'", cases[i].schema, cases[i].text);
    struct grammar *g;
    assert_int_equal(grammar_compile(&g, grammar_json_object(), strlen(grammar_json_object()), NULL), PD_OK);
    grammar_free(g);
}

static void refuses(void **state)
{
    static const struct {
        const char *schema, *says;
        enum pd_status status;
    } cases[] = {
        {"{", "not JSON", PD_ERR_USAGE},
        {"3", "a schema is an object", PD_ERR_USAGE},
        {"false", "no value is valid", PD_ERR_USAGE},
        {"{\"type\":\"strin\"}", "no type strin", PD_ERR_USAGE},
        {"{\"properties\":{\"a\":{\"not\":{}}}}", "/properties/a/not: this keyword", PD_ERR_UNSUPPORTED},
        {"{\"patternProperties\":{}}", "/patternProperties", PD_ERR_UNSUPPORTED},
        {"{\"if\":{}}", "/if", PD_ERR_UNSUPPORTED},
        {"{\"type\":\"array\",\"uniqueItems\":true}", "uniqueItems", PD_ERR_UNSUPPORTED},
        {"{\"type\":\"array\",\"contains\":{}}", "/contains", PD_ERR_UNSUPPORTED},
        {"{\"type\":\"string\",\"format\":\"regex\"}", "/format: format regex", PD_ERR_UNSUPPORTED},
        {"{\"type\":\"string\",\"pattern\":\"(?=a)\"}", "/pattern: (?=", PD_ERR_UNSUPPORTED},
        {"{\"type\":\"string\",\"pattern\":\"(a)\\\\1\"}", "/pattern: \\1", PD_ERR_UNSUPPORTED},
        {"{\"type\":\"string\",\"pattern\":\"^a|b$\"}", "choice beside an anchor", PD_ERR_UNSUPPORTED},
        {"{\"type\":\"string\",\"pattern\":\"a\",\"maxLength\":3}", "one of the three", PD_ERR_UNSUPPORTED},
        {"{\"type\":\"string\",\"minLength\":3,\"maxLength\":2}", "minLength is above", PD_ERR_USAGE},
        {"{\"type\":\"number\",\"minimum\":3,\"maximum\":2}", "no number", PD_ERR_USAGE},
        {"{\"type\":\"integer\",\"multipleOf\":3}", "/multipleOf", PD_ERR_UNSUPPORTED},
        {"{\"$ref\":\"http://example.org/a\"}", "/$ref", PD_ERR_UNSUPPORTED},
        {"{\"$ref\":\"#/$defs/a\"}", "not in the schema", PD_ERR_USAGE},
        {"{\"$ref\":\"#\"}", "refers to nothing but itself", PD_ERR_USAGE},
        {"{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\"}]}", "/oneOf/1: a value may be valid",
         PD_ERR_UNSUPPORTED},
        {"{\"allOf\":[{\"type\":\"string\"},{\"minLength\":1}]}", "only objects", PD_ERR_UNSUPPORTED},
        {"{\"type\":\"object\",\"properties\":{\"a\":{}},\"required\":[\"b\"],\"additionalProperties\":"
         "false}",
         "/b: the property is required, and not allowed", PD_ERR_USAGE},
        {"{\"enum\":[]}", "list of values", PD_ERR_USAGE},
        {"{\"enum\":[1],\"minimum\":0}", "beside enum", PD_ERR_UNSUPPORTED},
        {"{\"type\":\"string\",\"maxLength\":1000000}", "/maxLength: a whole number from 0 to 10000",
         PD_ERR_UNSUPPORTED},
        {"{\"type\":\"object\",\"properties\":{\"a\":{},\"b\":{}},\"maxProperties\":1}", "maxProperties",
         PD_ERR_UNSUPPORTED},
        {"{\"minimum\":1e300}", "/minimum: bounds", PD_ERR_UNSUPPORTED},
    };
    (void)state;
    for (size_t i = 0; i < PD_COUNT(cases); i++) {
        struct pd_error err = {0};
        char *text;
        enum pd_status status = grammar_from_schema(&text, cases[i].schema, strlen(cases[i].schema), &err);
        if (status != cases[i].status || text || !strstr(err.text, cases[i].says))
            fail_msg("%s: %d %s", cases[i].schema, status, err.text);
    }
}

/* Deep, doubling, huge: an error within the limits, or a grammar within them, and soon. */
static void hostile(void **state)
{
    enum { SIZE = 200000 };
    static char text[SIZE + 100];
    struct pd_error err = {0};
    char *out;
    int n = 0;
    (void)state;
    for (int i = 0; i < 5000; i++)
        n += sprintf(text + n, "{\"items\":");
    n += sprintf(text + n, "{}");
    for (int i = 0; i < 5000; i++)
        text[n++] = '}';
    assert_int_equal(grammar_from_schema(&out, text, (size_t)n, &err), PD_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "within each other"));
    n = sprintf(text, "{\"$ref\":\"#/$defs/a0\",\"$defs\":{"); /* each twice the one before */
    for (int i = 0; i < 60; i++)
        n += sprintf(text + n,
                     "\"a%d\":{\"type\":\"object\",\"properties\":{\"x\":{\"$ref\":\"#/$defs/"
                     "a%d\"},\"y\":{\"$ref\":\"#/$defs/a%d\"}}},",
                     i, i + 1, i + 1);
    n += sprintf(text + n, "\"a60\":{\"type\":\"null\"}}}");
    assert_int_equal(grammar_from_schema(&out, text, (size_t)n, &err), PD_OK); /* places are shared */
    free(out);
    n = sprintf(text, "{\"type\":\"array\",\"items\":");
    for (int i = 0; i < 6; i++)
        n += sprintf(text + n, "{\"type\":\"array\",\"maxItems\":10000,\"items\":");
    n += sprintf(text + n, "{\"type\":\"string\",\"maxLength\":10000}");
    for (int i = 0; i < 7; i++)
        text[n++] = '}';
    assert_int_equal(grammar_from_schema(&out, text, (size_t)n, &err), PD_OK); /* so are repetitions */
    free(out);
    n = sprintf(text, "{\"enum\":[");
    for (int i = 0; n < SIZE - 100; i++)
        n += sprintf(text + n, "%s\"value number %d\"", i ? "," : "", i);
    n += sprintf(text + n, "]}");
    enum pd_status status = grammar_from_schema(&out, text, (size_t)n, &err);
    assert_true(status == PD_OK || status == PD_ERR_UNSUPPORTED);
    free(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(takes), cmocka_unit_test(refuses),
                                       cmocka_unit_test(hostile)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
