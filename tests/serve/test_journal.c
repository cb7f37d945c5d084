/* The journal's file: there and back, cut at every byte, with every bit flipped; its lock; its writing. */
#include "serve/journal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "messages.h"

#include <cmocka.h>

enum { RECORDS = 4, MAGIC_BYTES = 8 };
static const int types[RECORDS] = {MESSAGE_REQUEST, MESSAGE_TOKENS, MESSAGE_TOKENS, MESSAGE_END};
static char folder[] = "/tmp/pipedec-journal-XXXXXX";

struct seen {
    int n;
    int type[64];
    uint64_t id[64];
};

static void see(void *user, const struct message *m)
{
    struct seen *s = user;
    if (s->n < 64) {
        s->type[s->n] = m->type;
        s->id[s->n] = m->id;
    }
    s->n++;
}

/* A file's bytes; ends[i] is where record i ends. */
static struct bytes file_of(size_t *ends)
{
    struct bytes out = {0};
    bytes_add(&out, "PDJOURN1", MAGIC_BYTES);
    for (int i = 0; i < RECORDS; i++) {
        const struct message m = message_example(types[i]);
        journal_record(&out, &m);
        ends[i] = out.size;
    }
    return out;
}

static int whole_before(const size_t *ends, size_t at)
{
    int n = 0;
    while (n < RECORDS && ends[n] <= at)
        n++;
    return n;
}

/* A torn end is dropped wherever it is torn, and is no damage. */
static void test_torn(void **state)
{
    (void)state;
    size_t ends[RECORDS];
    struct bytes a = file_of(ends);
    for (size_t n = 0; n <= a.size; n++) {
        struct seen s = {0};
        uint8_t *exact = malloc(n ? n : 1);
        memcpy(exact, a.data, n);
        const struct journal_read r = journal_parse(exact, n, see, &s);
        const int want = whole_before(ends, n);
        assert_int_equal(r.records, want);
        assert_int_equal(s.n, want);
        assert_false(r.damaged);
        assert_int_equal(r.used, want ? ends[want - 1] : n >= MAGIC_BYTES ? MAGIC_BYTES : 0);
        free(exact);
    }
    bytes_free(&a);
}

/* A flipped bit loses its record and those behind it, nothing before; and is told unless it is in the last. */
static void test_flipped(void **state)
{
    (void)state;
    size_t ends[RECORDS];
    struct bytes a = file_of(ends);
    for (size_t bit = 0; bit < a.size * 8; bit++) {
        struct seen s = {0};
        a.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        const struct journal_read r = journal_parse(a.data, a.size, see, &s);
        const int want = whole_before(ends, bit / 8);
        assert_int_equal(r.records, bit / 8 < MAGIC_BYTES ? 0 : want);
        assert_int_equal(s.n, r.records);
        for (int i = 0; i < s.n; i++)
            assert_int_equal(s.type[i], types[i]);
        assert_int_equal(r.damaged, want < RECORDS - 1 || bit / 8 < MAGIC_BYTES);
        a.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    bytes_free(&a);
}

static void test_strange(void **state)
{
    (void)state;
    struct seen s = {0};
    assert_true(journal_parse((const uint8_t *)"not a journal at all", 20, see, &s).damaged);
    assert_false(journal_parse((const uint8_t *)"", 0, see, &s).damaged);
    assert_int_equal(s.n, 0);
}

static struct journal *open_it(struct seen *s)
{
    struct journal *j;
    struct pd_error err = {0};
    if (journal_open(&j, folder, see, s, &err))
        fail_msg("%s", err.text);
    return j;
}

static void add(struct journal *j, int type, uint64_t id)
{
    struct message m = message_example(type);
    m.id = id;
    journal_add(j, &m);
}

static char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void test_file(void **state)
{
    (void)state;
    struct seen s = {0};
    struct bytes all = {0};
    struct journal *j = open_it(&s);
    assert_int_equal(s.n, 0);
    journal_replace(j, &all);
    for (uint64_t i = 1; i <= 20; i++)
        add(j, MESSAGE_REQUEST, i);
    journal_close(j);
    j = open_it(&s);
    assert_int_equal(s.n, 20);
    assert_true(s.id[0] == 1 && s.id[19] == 20);
    journal_close(j); /* with nothing said the file stays as it is */
    s.n = 0;
    j = open_it(&s);
    assert_int_equal(s.n, 20);
    const struct message m = message_example(MESSAGE_END);
    journal_record(&all, &m);
    journal_replace(j, &all);
    add(j, MESSAGE_TOKENS, 7);
    const size_t bytes = journal_bytes(j);
    journal_close(j);
    struct stat st;
    assert_int_equal(stat(path_of("journal"), &st), 0);
    assert_int_equal(st.st_size, bytes);
    assert_int_equal(st.st_mode & 077, 0); /* prompts are nobody else's */
    s.n = 0;
    j = open_it(&s);
    assert_int_equal(s.n, 2);
    assert_true(s.type[0] == MESSAGE_END && s.type[1] == MESSAGE_TOKENS && s.id[1] == 7);
    journal_close(j);
}

static int errors;
static char said[1024];

static void on_log(void *user, enum log_level level, const char *text)
{
    (void)user;
    errors += level == LOG_ERROR;
    snprintf(said, sizeof said, "%s", text);
}

static void test_damaged_file(void **state)
{
    (void)state;
    struct seen s = {0};
    size_t ends[RECORDS];
    struct bytes a = file_of(ends), none = {0};
    a.data[ends[0] + 20] ^= 1;
    FILE *f = fopen(path_of("journal"), "w");
    assert_int_equal(fwrite(a.data, 1, a.size, f), a.size);
    fclose(f);
    log_set(on_log, NULL);
    struct journal *j = open_it(&s);
    log_set(NULL, NULL);
    assert_int_equal(s.n, 1);
    assert_int_equal(errors, 1);
    assert_non_null(strstr(said, "damaged at byte"));
    journal_replace(j, &none);
    journal_close(j);
    struct stat st;
    assert_int_equal(stat(path_of("damaged"), &st), 0);
    assert_int_equal(st.st_size, a.size);
    bytes_free(&a);
}

static void test_lock(void **state)
{
    (void)state;
    struct seen s = {0};
    struct journal *j = open_it(&s), *second;
    struct pd_error err = {0};
    assert_int_equal(journal_open(&second, folder, see, &s, &err), PD_ERR_BUSY);
    assert_non_null(strstr(err.text, "another server"));
    assert_null(second);
    journal_close(j);
    journal_close(open_it(&s));
    assert_int_equal(journal_open(&second, "/dev/null/x", see, &s, &err), PD_ERR_FILE);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    static const char *const names[] = {"journal", "damaged", "lock"};
    for (size_t i = 0; i < PD_COUNT(names); i++)
        unlink(path_of(names[i]));
    return rmdir(folder); /* nothing else was left there */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_torn), cmocka_unit_test(test_flipped),      cmocka_unit_test(test_strange),
        cmocka_unit_test(test_file), cmocka_unit_test(test_damaged_file), cmocka_unit_test(test_lock),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
