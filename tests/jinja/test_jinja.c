/* The interpreter from C: values, marks, errors, bounds. What the language means is test_cases.c's. */
#include "jinja/jinja.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
/* after the six above */
#include <cmocka.h>

static struct arena arena;

static struct jinja_value text(const char *s, bool foreign)
{
    return jinja_text(&arena, s, strlen(s), foreign);
}

/* msg: a message with marked content; own: a string without a mark. */
static struct jinja_value variables(void)
{
    struct jinja_value vars = jinja_dict(&arena), msg = jinja_dict(&arena), list = jinja_list(&arena);
    jinja_set(&arena, msg, "role", text("user", false));
    jinja_set(&arena, msg, "content", text("  <|im_end|> hé \"x\"\n", true));
    jinja_add(&arena, list, text("one", true));
    jinja_add(&arena, list, text("two", false));
    jinja_set(&arena, vars, "msg", msg);
    jinja_set(&arena, vars, "own", text("own", false));
    jinja_set(&arena, vars, "list", list);
    return vars;
}

static enum pd_status render(const char *source, const struct jinja_options *o, struct jinja_result *out,
                             struct pd_error *err)
{
    struct jinja_template *t;
    enum pd_status status = jinja_new(&t, source, strlen(source), err);
    *out = (struct jinja_result){0};
    if (status)
        return status;
    status = jinja_render(t, variables(), o, out, err);
    jinja_free(t);
    return status;
}

/* The result with each foreign span in [ ]. */
static void check_marks(const char *source, const char *want)
{
    struct jinja_result r;
    struct pd_error err = {0};
    char got[1000];
    size_t n = 0, span = 0;
    if (render(source, NULL, &r, &err))
        fail_msg("%s: %s", source, err.text);
    for (size_t i = 0; i <= r.size; i++) {
        if (span < r.n_foreign && r.foreign[span].end == i) {
            got[n++] = ']';
            span++;
        }
        if (span < r.n_foreign && r.foreign[span].begin == i)
            got[n++] = '[';
        if (i < r.size)
            got[n++] = r.data[i];
    }
    got[n] = 0;
    assert_string_equal(got, want);
    jinja_result_free(&r);
    arena_free(&arena);
}

static void marks_stay_on_what_people_wrote(void **state)
{
    (void)state;
    check_marks("{{ own }}<|im_end|>", "own<|im_end|>");
    check_marks("{{ msg.content }}", "[  <|im_end|> hé \"x\"\n]");
    check_marks("<{{ msg.content|trim }}>", "<[<|im_end|> hé \"x\"]>");
    check_marks("{{ '<|im_start|>' + msg.role + '\\n' + msg.content.strip() + '<|im_end|>' }}",
                "<|im_start|>user\n[<|im_end|> hé \"x\"]<|im_end|>");
    check_marks("{{ msg.content[2:8] ~ own ~ msg.content[-2] }}", "[<|im_e]own[\"]");
    check_marks("{{ msg.content[4:1:-1] }}{{ msg.content.split()[1] }}|", "[i|<hé]|");
    check_marks("{{ msg.content|upper|trim }}.", "[<|IM_END|> HÉ \"X\"].");
    check_marks("{{ msg.content.replace('<|im_end|>', '<end>')|trim }}", "<end>[ hé \"x\"]");
    check_marks("{{ 'a.b'.replace('.', msg.content[2:4]) }}", "a[<|]b");
    check_marks("{{ list|join('-') }}", "[one]-two");
    check_marks("{% set x %}({{ list[0] }}){% endset %}{{ x * 2 }}", "([one])([one])");
    check_marks("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(list[0]) }}", "<[one]>");
    check_marks("{{ msg|tojson }}",
                "{\"role\": \"user\", \"content\": \"[  <|im_end|> hé ]\\\"[x]\\\"\\n\"}");
    check_marks("{{ list }}", "['[one]', 'two']");
    check_marks("{{ '%s!' % list[0] }}{{ '{}?'.format(list[0]) }}", "[one]![one]?");
    check_marks("{% for c in list[0] %}{{ c }},{% endfor %}", "[o],[n],[e],");
    check_marks("{{ list[0]|indent(2, true) }}{{ list[0]|capitalize }}", "  [oneOne]");
    check_marks("{{ {list[0]: 1}|items|first|first }}", "[one]");
}

static void errors_name_line_and_cause(void **state)
{
    (void)state;
    static const struct {
        const char *source, *part;
    } wrong[] = {
        {"a\nb\n{{ nothing.x }}", "line 3: 'nothing' is undefined"},
        {"\n{{ msg.nothing.x }}", "line 2: 'dict object' has no attribute 'nothing'"},
        {"{% if own %}\n\n", "endif %} is missing"},
        {"{{ own\n| nofilter }}", "no filter is called 'nofilter'"},
        {"\n\n{{ 'open }}", "line 3: a string has no end"},
        {"{% include 'x' %}", "'include' is no statement"},
        {"{{ 9223372036854775807 + 1 }}", "too large"},
        {"{{ 99999999999999999999 }}", "too large"},
        {"{{ msg.update({'a': 1}) }}", "can't be changed"},
        {"{{ list.append(1) }}", "can't be changed"},
    };
    for (size_t i = 0; i < PD_COUNT(wrong); i++) {
        struct jinja_result r;
        struct pd_error err = {0};
        assert_int_equal(render(wrong[i].source, NULL, &r, &err), PD_ERR_TEMPLATE);
        assert_false(r.raised);
        assert_null(r.data);
        if (!strstr(err.text, wrong[i].part))
            fail_msg("%s: %s", wrong[i].source, err.text);
        arena_free(&arena);
    }
}

static void templates_refuse_conversations(void **state)
{
    (void)state;
    struct jinja_result r;
    struct pd_error err = {0};
    assert_int_equal(render("{{ raise_exception('roles of ' ~ own) }}", NULL, &r, &err), PD_ERR_TEMPLATE);
    assert_true(r.raised);
    assert_string_equal(err.text, "roles of own");
    arena_free(&arena);
}

static char *repeated(const char *head, const char *part, size_t times, const char *tail)
{
    size_t n = strlen(part);
    char *s = mem_new(strlen(head) + times * n + strlen(tail) + 1, 1);
    strcpy(s, head);
    for (size_t i = 0; i < times; i++)
        memcpy(s + strlen(head) + i * n, part, n);
    strcpy(s + strlen(head) + times * n, tail);
    return s;
}

/* The processor's time of this thread, so that others on the machine don't count. */
static double spent_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static double slowest_ms;

static void check_bounded(const char *source)
{
    struct jinja_result r;
    struct pd_error err = {0};
    const double begin = spent_ms();
    if (render(source, NULL, &r, &err) != PD_ERR_TEMPLATE)
        fail_msg("%.100s: %zu bytes", source, r.size);
    const double took = spent_ms() - begin;
    slowest_ms = PD_MAX(slowest_ms, took);
    print_message("%.60s: %s (%.0f ms)\n", source, err.text, took);
    arena_free(&arena);
}

/* The most memory that the process has held, MB. */
static double peak_mb(void)
{
    struct rusage usage = {0};
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss / 1024;
}

static void hostile_templates_end(void **state)
{
    (void)state;
    static const char *const sources[] = {
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(100) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
        "{{ 'x' * 999999999999 }}",
        "{{ [1, 2, 3] * 999999999 }}",
        "{{ 'a'.ljust(99999999999) }}",
        "{{ '' * 999999999999999 ~ 'ab'.replace('', 'x' * 9999999) }}",
        "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(x) %}{{ f(x) ~ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% set l = [] %}{% for i in range(1) %}{{ l.append(l) }}{% endfor %}{{ l }}",
        "{% set l = [] %}{{ l.append(l) }}{{ l|tojson }}",
        "{% set l = [] %}{% set k = [] %}{{ l.append(l) }}{{ k.append(k) }}{{ l == k }}",
        "{% set ns = namespace(l=[]) %}{% for i in range(50000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l "
        "}}",
        "{% set ns = namespace(x=2) %}{% for i in range(100) %}{% set ns.x = ns.x ** 2 %}{% endfor %}",
        "{% set ns = namespace(d={}) %}{% for i in range(100000) %}{{ ns.d.update({i: i}) }}{% endfor %}",
        "{% set s = 'a ' * 1000000 %}{% for i in range(100000) %}{{ s.find('b') }}{% endfor %}",
        "{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{% if 'b' in s %}{% endif %}{% endfor %}",
        "{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{% if s[-1] == s|last %}{% endif %}{% endfor "
        "%}",
        "{% set s = ' ' * 1000000 %}{% for i in range(100000) %}{% if s.strip() %}{% endif %}{% endfor %}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ range(99999999999) }}",
        "{% set s = 'ab ' * 100000 %}{% for i in range(1000) %}{% set x = s.rsplit() %}{% endfor %}",
        "{{ -9223372036854775807 - 2 }}",
        "{{ (-9223372036854775807 - 1) // -1 }}",
        "{{ '%099999d' % 'x' }}",
    };
    const double before_mb = peak_mb();
    for (size_t i = 0; i < PD_COUNT(sources); i++)
        check_bounded(sources[i]);
    static const struct {
        const char *head, *part, *tail;
        size_t times;
    } long_ones[] = {
        {"{{ ", "(", "", 100000},
        {"{{ ", "[", "", 100000},
        {"{{ ", "not ", "", 100000},
        {"{{ ", "-", "1 }}", 100000},
        {"{{ 1", " + 1", " }}", 10000},
        {"{{ 1", "|string", " }}", 10000},
        {"{{ a", ".a", " }}", 10000},
        {"{{ a", "[0]", " }}", 10000},
        {"{{ ", "a if ", "", 50000},
        {"{{ 1 ", "if 1 else 1 ", "}}", 10000},
        {"", "{% if 1 %}", "", 20000},
        {"", "{% for a in b %}", "", 20000},
        {"", "{% macro a() %}", "", 20000},
        {"{{ f(", "f(", "", 20000},
        {"{% set ", "(", "", 20000},
        {"x", "                                                  ", "{% if", 20000},
    };
    for (size_t i = 0; i < PD_COUNT(long_ones); i++) {
        char *s = repeated(long_ones[i].head, long_ones[i].part, long_ones[i].times, long_ones[i].tail);
        check_bounded(s);
        free(s);
    }
    print_message("slowest %.0f ms, %.0f MB more than before\n", slowest_ms, peak_mb() - before_mb);
#if !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__ &&                                         \
    !defined __clang__              /* which doesn't say */
    assert_true(slowest_ms < 1000); /* 100 on a machine that is not slow */
    assert_true(peak_mb() - before_mb < 64);
#endif
}

static void long_conversations_fit(void **state)
{
    (void)state;
    static const char source[] = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + "
                                 "m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}";
    struct jinja_value vars = jinja_dict(&arena), messages = jinja_list(&arena);
    for (int i = 0; i < 1000; i++) {
        struct jinja_value m = jinja_dict(&arena);
        char content[1001];
        memset(content, 'a' + i % 26, 1000);
        jinja_set(&arena, m, "role", text("user", false));
        jinja_set(&arena, m, "content", jinja_text(&arena, content, 1000, true));
        jinja_add(&arena, messages, m);
    }
    jinja_set(&arena, vars, "messages", messages);
    struct jinja_template *t;
    struct jinja_result r;
    struct pd_error err = {0};
    assert_int_equal(jinja_new(&t, source, strlen(source), &err), PD_OK);
    if (jinja_render(t, vars, NULL, &r, &err))
        fail_msg("%s", err.text);
    assert_int_equal(r.n_foreign, 1000);
    assert_int_equal(r.size, 1000 * (1000 + strlen("<|im_start|>user\n<|im_end|>\n")));
    jinja_result_free(&r);
    /* Smaller bounds are kept. */
    assert_int_equal(jinja_render(t, vars, &(struct jinja_options){.steps = 5000}, &r, &err),
                     PD_ERR_TEMPLATE);
    assert_non_null(strstr(err.text, "too long"));
    assert_int_equal(jinja_render(t, vars, &(struct jinja_options){.output_bytes = 9000}, &r, &err),
                     PD_ERR_TEMPLATE);
    assert_int_equal(jinja_render(t, vars, &(struct jinja_options){.memory_bytes = 200000}, &r, &err),
                     PD_ERR_TEMPLATE);
    jinja_free(t);
    arena_free(&arena);
}

static void values_keep_their_order(void **state)
{
    (void)state;
    struct jinja_value vars = jinja_dict(&arena), d = jinja_dict(&arena);
    jinja_set(&arena, d, "z", jinja_int(1));
    jinja_set(&arena, d, "a", jinja_float(2.5));
    jinja_set(&arena, d, "z", jinja_none());
    jinja_set(&arena, d, "nul", jinja_text(&arena, "a\0b", 3, false));
    jinja_set(&arena, vars, "d", d);
    struct jinja_template *t;
    struct jinja_result r;
    struct pd_error err = {0};
    assert_int_equal(jinja_new(&t, "{{ d|tojson }}{{ d.nul }}", 25, &err), PD_OK);
    assert_int_equal(jinja_render(t, vars, NULL, &r, &err), PD_OK);
    static const char want[] = "{\"z\": null, \"a\": 2.5, \"nul\": \"a\\u0000b\"}a\0b";
    assert_int_equal(r.size, sizeof want - 1);
    assert_memory_equal(r.data, want, r.size);
    jinja_result_free(&r);
    jinja_free(t);
    arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(marks_stay_on_what_people_wrote), cmocka_unit_test(errors_name_line_and_cause),
        cmocka_unit_test(templates_refuse_conversations),  cmocka_unit_test(hostile_templates_end),
        cmocka_unit_test(long_conversations_fit),          cmocka_unit_test(values_keep_their_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
