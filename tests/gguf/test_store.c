/* needs: gguf base */
/* The store of other machines' tensors: what is fetched, what is not fetched again, what damage and hostile sources do. */
#include "gguf/store.h"
#include "gguf_build.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { TENSORS = 6, FLOATS = 40960, BYTES = FLOATS * 4 };

static char dir[64], model[96], cache[96];

/* A source as rank 0 is one: a file, and what is to go wrong. */
struct origin {
    struct gguf *g;
    struct gguf_file part[4];
    struct store_source source;
    uint64_t sent, planned;
    int full;            /* tensors whose digest of all bytes was asked for */
    uint64_t dies_after; /* bytes; 0: never */
    bool too_many, too_few, other_header;
};

static enum pd_status fetch_one(struct origin *o, const struct store_range *r, const struct store_sink *sink,
                                struct pd_error *err)
{
    static unsigned char data[65536];
    enum pd_status status = PD_OK;
    for (uint64_t at = 0; at < r->bytes && !status; at += sizeof data) {
        size_t size = (size_t)PD_MIN((uint64_t)sizeof data, r->bytes - at);
        if (o->dies_after && o->sent + size > o->dies_after)
            return error_set(err, PD_ERR_PEER, "rank 0 is gone");
        if ((status = gguf_read(o->g, r->part, r->offset + at, data, size, err)))
            return status;
        if (o->other_header && r->offset == 0)
            data[size - 9] ^= 1;
        o->sent += size;
        status = sink->take(sink->user, data, size, err);
        if (!status && o->too_many)
            status = sink->take(sink->user, data, size, err);
    }
    return status;
}

static enum pd_status fetch(void *user, const struct store_range *list, size_t n,
                            const struct store_sink *sink, struct pd_error *err)
{
    struct origin *o = user;
    enum pd_status status = PD_OK;
    for (size_t i = 0; i < n && !status; i++)
        if (!o->too_few || list[i].offset == 0 || i + 1 < n)
            status = fetch_one(o, &list[i], sink, err);
    return status;
}

static enum pd_status digests(void *user, bool full, const uint32_t *tensors, size_t n, uint64_t *out,
                              struct pd_error *err)
{
    struct origin *o = user;
    enum pd_status status = PD_OK;
    o->full += full ? (int)n : 0;
    for (size_t i = 0; i < n && !status; i++)
        status = gguf_tensor_digest(o->g, gguf_tensor_at(o->g, tensors[i]),
                                    full ? 0 : gguf_sample_stride(o->g), o->source.seed, &out[i], err);
    return status;
}

static void plan(void *user, uint64_t bytes)
{
    ((struct origin *)user)->planned = bytes;
}

static void origin_open(struct origin *o, const char *path, uint64_t seed)
{
    struct pd_error err = {0};
    *o = (struct origin){0};
    assert_int_equal(gguf_open(&o->g, path, &err), PD_OK);
    for (size_t i = 0; i < gguf_parts(o->g); i++)
        o->part[i] = gguf_file_at(o->g, i);
    o->source = (struct store_source){.card = {.digest = gguf_digest(o->g),
                                               .stamp = gguf_stamp(o->g),
                                               .n_parts = (uint32_t)gguf_parts(o->g),
                                               .n_tensors = (uint32_t)gguf_tensor_count(o->g),
                                               .part = o->part},
                                      .seed = seed,
                                      .fetch = fetch,
                                      .digests = digests,
                                      .plan = plan,
                                      .user = o};
}

/* Wanted are the tensors whose bit is set. */
static enum pd_status wanted(void *user, const struct gguf *g, bool *out, struct pd_error *err)
{
    (void)err;
    for (size_t i = 0; i < gguf_tensor_count(g); i++)
        out[i] = *(const unsigned *)user >> i & 1;
    return PD_OK;
}

static enum pd_status get_from(struct origin *o, unsigned mask, struct store_held **held, uint64_t limit)
{
    static struct pd_error err;
    return store_get(held,
                     &(struct store_options){
                         .dir = cache, .limit = limit, .source = &o->source, .wanted = wanted, .user = &mask},
                     &err);
}

/* The tensors of `mask` are in the file at held->path, and equal to the origin's. */
static void check(const struct store_held *held, const char *path, unsigned mask)
{
    struct gguf *a, *b;
    struct pd_error err = {0};
    assert_int_equal(gguf_open(&a, path, &err), PD_OK);
    assert_int_equal(gguf_open(&b, held->path, &err), PD_OK);
    assert_true(gguf_digest(a) == gguf_digest(b));
    for (size_t i = 0; i < gguf_tensor_count(a); i++) {
        const struct gguf_tensor *x = gguf_tensor_at(a, i), *y = gguf_tensor_at(b, i);
        assert_string_equal(x->name, y->name);
        if (mask >> i & 1)
            assert_memory_equal(x->data, y->data, x->bytes);
    }
    assert_int_equal(gguf_check(b, 0, &err), PD_OK);
    gguf_close(a);
    gguf_close(b);
}

/* Get, check, and return what was fetched. */
static uint64_t got(unsigned mask, int *damaged, int *changed)
{
    struct origin o;
    struct store_held *held;
    origin_open(&o, model, 7);
    assert_int_equal(get_from(&o, mask, &held, 1 << 30), PD_OK);
    check(held, model, mask);
    assert_false(held->memory);
    assert_true(o.planned == held->fetched);
    const uint64_t fetched = held->fetched;
    if (damaged)
        *damaged = held->damaged;
    if (changed)
        *changed = held->changed;
    store_free(held);
    gguf_close(o.g);
    return fetched;
}

static void write_model(const char *path, float first, uint64_t no, uint64_t count)
{
    struct gguf_build b = {0};
    static float data[FLOATS];
    const int64_t ne[] = {FLOATS};
    gb_str(&b, "general.architecture", "llama");
    if (count) {
        gb_raw(&b, "split.no", GGUF_KIND_U64, &no, 8);
        gb_raw(&b, "split.count", GGUF_KIND_U64, &count, 8);
    }
    for (int i = 0; i < TENSORS; i++) {
        char name[32];
        snprintf(name, sizeof name, "blk.%d.%d", (int)no, i);
        for (int k = 0; k < FLOATS; k++)
            data[k] = first + (float)(i * FLOATS + k);
        gb_tensor(&b, name, GGML_TYPE_F32, 1, ne, data, sizeof data);
    }
    size_t size;
    unsigned char *bytes = gb_finish(&b, &size);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
    free(bytes);
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/pipedec-store-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(model, sizeof model, "%s/origin.gguf", dir);
    snprintf(cache, sizeof cache, "%s/deep/er/cache", dir);
    write_model(model, 1, 0, 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

/* The first set's folder, or a file in it. Sets that there are: returned. */
static int find_set(char *out, size_t room, const char *file)
{
    int n = 0;
    DIR *d = opendir(cache);
    for (struct dirent *e; d && (e = readdir(d));) {
        char entry[400];
        snprintf(entry, sizeof entry, "%s/%s", cache, e->d_name);
        DIR *sub = e->d_name[0] == '.' ? NULL : opendir(entry);
        for (struct dirent *s; sub && (s = readdir(sub));)
            if (strncmp(s->d_name, "set-", 4) == 0 && n++ == 0)
                snprintf(out, room, "%s/%s/%s", entry, s->d_name, file);
        if (sub)
            closedir(sub);
    }
    if (d)
        closedir(d);
    return n;
}

static uint64_t disk_bytes(void)
{
    char command[160];
    unsigned long long kb = 0;
    snprintf(command, sizeof command, "du -sk '%s'", cache);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%llu", &kb), 1);
    pclose(f);
    return kb << 10;
}

static void spoil(const char *file, long at)
{
    char path[800];
    assert_true(find_set(path, sizeof path, file) > 0);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, at, at < 0 ? SEEK_END : SEEK_SET);
    int c = fgetc(f);
    fseek(f, -1, SEEK_CUR);
    fputc(c ^ 1, f);
    assert_int_equal(fclose(f), 0);
}

static void test_once(void **state)
{
    (void)state;
    assert_int_equal(got(0x6, NULL, NULL), 2 * BYTES);
    assert_in_range(disk_bytes(), 2 * BYTES, 2 * BYTES + 100000); /* its own tensors only */
    assert_int_equal(got(0x6, NULL, NULL), 0);
    assert_int_equal(got(0x2, NULL, NULL), 0); /* fewer */
    struct origin o;
    uint64_t kept, room;
    origin_open(&o, model, 7);
    store_look(cache, o.source.card.digest, &kept, &room);
    assert_in_range(kept, 2 * BYTES, 2 * BYTES + 100000);
    assert_true(room > 0);
    store_look("/tmp/not/there", o.source.card.digest, &kept, &room);
    assert_int_equal(kept, 0);
    assert_true(room > 0);
    gguf_close(o.g);
}

/* Another cut: only what is missing comes, into the same set. */
static void test_another_cut(void **state)
{
    (void)state;
    char path[800];
    assert_int_equal(got(0x7, NULL, NULL), 3 * BYTES);
    assert_int_equal(got(0x1e, NULL, NULL), 2 * BYTES);
    assert_int_equal(find_set(path, sizeof path, ""), 1);
    assert_int_equal(got(0x1f, NULL, NULL), 0);
}

/* A set that another process uses stays as it is; what it has is copied. */
static void test_in_use(void **state)
{
    (void)state;
    struct origin o;
    struct store_held *held;
    char path[800];
    origin_open(&o, model, 3);
    assert_int_equal(get_from(&o, 0x3, &held, 1 << 30), PD_OK);
    assert_int_equal(got(0x6, NULL, NULL), BYTES);
    check(held, model, 0x3);
    assert_int_equal(find_set(path, sizeof path, ""), 2);
    store_free(held);
    gguf_close(o.g);
    assert_int_equal(got(0x7, NULL, NULL), 0);
    assert_int_equal(find_set(path, sizeof path, ""), 1); /* the other one is covered by it */
}

static void test_damage(void **state)
{
    (void)state;
    int damaged;
    assert_int_equal(got(0x6, NULL, NULL), 2 * BYTES);
    spoil("model.gguf", (long)(2 * BYTES)); /* somewhere in the wanted ones */
    assert_int_equal(got(0x6, &damaged, NULL), BYTES);
    assert_int_equal(damaged, 1);
    assert_int_equal(got(0x6, &damaged, NULL), 0);
    assert_int_equal(damaged, 0);
    spoil("held", 30);
    assert_int_equal(got(0x6, NULL, NULL), 2 * BYTES);
    spoil("model.gguf", 9); /* the header */
    assert_int_equal(got(0x6, NULL, NULL), 2 * BYTES);
    char path[800];
    find_set(path, sizeof path, "model.gguf");
    assert_int_equal(truncate(path, 3 * BYTES), 0);
    assert_int_equal(got(0x6, NULL, NULL), 2 * BYTES);
    find_set(path, sizeof path, "held");
    unlink(path);
    assert_int_equal(got(0x6, NULL, NULL), 2 * BYTES);
    assert_int_equal(find_set(path, sizeof path, ""), 1); /* rubbish is removed */
}

/* The same header, other weights. */
static void test_changed_model(void **state)
{
    (void)state;
    int changed;
    struct origin o;
    struct store_held *held;
    assert_int_equal(got(0x6, NULL, NULL), 2 * BYTES);
    FILE *f = fopen(model, "r+b"); /* one byte of the last tensor of interest: samples would hardly find it */
    struct pd_error err;
    struct gguf *g;
    assert_int_equal(gguf_open(&g, model, &err), PD_OK);
    fseek(f, (long)gguf_offset(g, gguf_tensor_at(g, 2)) + 70001, SEEK_SET);
    gguf_close(g);
    fputc(99, f);
    fclose(f);
    assert_int_equal(got(0x6, NULL, &changed), BYTES);
    assert_int_equal(changed, 1);
    assert_int_equal(got(0x6, NULL, &changed), 0);
    /* Touched, but the same: compared in full once. */
    assert_int_equal(utimensat(AT_FDCWD, model, NULL, 0), 0);
    for (int i = 0; i < 2; i++) {
        origin_open(&o, model, 7);
        assert_int_equal(get_from(&o, 0x6, &held, 1 << 30), PD_OK);
        assert_int_equal(held->fetched, 0);
        assert_int_equal(o.full, i ? 0 : 2);
        store_free(held);
        gguf_close(o.g);
    }
    /* All others, with the time of change that was before: samples find that. */
    struct stat st;
    assert_int_equal(stat(model, &st), 0);
    f = fopen(model, "r+b");
    fseek(f, st.st_size - 4 * BYTES, SEEK_SET);
    for (int i = 0; i < 4 * BYTES; i++)
        fputc(i, f);
    fclose(f);
    const struct timespec times[2] = {st.st_atim, st.st_mtim};
    utimensat(AT_FDCWD, model, times, 0);
    assert_int_equal(got(0xc, NULL, &changed), 2 * BYTES);
    assert_int_equal(changed, 1); /* the other one was never here */
}

static void test_another_model(void **state)
{
    (void)state;
    char path[800];
    assert_int_equal(got(0x6, NULL, NULL), 2 * BYTES);
    write_model(model, 5, 1, 0); /* other names */
    assert_int_equal(got(0x6, NULL, NULL), 2 * BYTES);
    assert_int_equal(find_set(path, sizeof path, ""), 2);
    /* With a limit the one that was used first goes. */
    struct origin o;
    struct store_held *held;
    origin_open(&o, model, 7);
    assert_int_equal(get_from(&o, 0xe, &held, 4 * BYTES), PD_OK);
    assert_int_equal(held->fetched, BYTES);
    assert_int_equal(find_set(path, sizeof path, ""), 1);
    check(held, model, 0xe);
    store_free(held);
    gguf_close(o.g);
}

static void test_cut_off(void **state)
{
    (void)state;
    struct origin o;
    struct store_held *held;
    origin_open(&o, model, 7);
    o.dies_after = 2 * BYTES + BYTES / 2;
    assert_int_equal(get_from(&o, 0xf, &held, 1 << 30), PD_ERR_PEER);
    assert_null(held);
    gguf_close(o.g);
    assert_int_equal(got(0xf, NULL, NULL), 2 * BYTES); /* what had come whole is not lost */
}

static void test_hostile(void **state)
{
    (void)state;
    struct store_held *held;
    for (int i = 0; i < 8; i++) {
        struct origin o;
        snprintf(cache, sizeof cache, "%s/cache%d", dir, i);
        origin_open(&o, model, 7);
        struct store_card *c = &o.source.card;
        o.too_many = i == 0;
        o.too_few = i == 1;
        o.other_header = i == 2;
        c->n_parts = i == 3 ? 0 : i == 4 ? 1u << 31 : 1;
        c->n_tensors += i == 5;
        o.part[0].bytes = i == 6 ? UINT64_MAX : o.part[0].bytes;
        o.part[0].header_bytes = i == 7 ? 24 : o.part[0].header_bytes;
        enum pd_status status = get_from(&o, 0x3, &held, 1 << 30);
        if (status != PD_ERR_PEER && status != PD_ERR_FORMAT)
            print_message("case %d: status %d\n", i, (int)status);
        assert_true(status == PD_ERR_PEER || status == PD_ERR_FORMAT);
        assert_null(held);
        gguf_close(o.g);
    }
    assert_int_equal(got(0x3, NULL, NULL), 2 * BYTES);
}

static void test_split(void **state)
{
    (void)state;
    char second[96];
    int damaged;
    snprintf(model, sizeof model, "%s/a-00001-of-00002.gguf", dir);
    snprintf(second, sizeof second, "%s/a-00002-of-00002.gguf", dir);
    write_model(model, 1, 0, 2);
    write_model(second, 2, 1, 2);
    assert_int_equal(got(0xc3, NULL, NULL), 4 * BYTES);
    assert_int_equal(got(0x83, NULL, NULL), 0);
    spoil("model-00002-of-00002.gguf", 200000);
    assert_int_equal(got(0xff, &damaged, NULL), 5 * BYTES);
    assert_int_equal(damaged, 1);
}

/* A disk without room: in memory, and on the disk again when there is. As root, on a small disk of its own. */
static void test_disk_full(void **state)
{
    (void)state;
    struct origin o;
    struct store_held *held;
    char command[200];
    snprintf(command, sizeof command, "mkdir -p '%s'", cache);
    assert_int_equal(system(command), 0);
    if (mount("none", cache, "tmpfs", 0, "size=400k")) {
        print_message("skipped: no small disk can be mounted here\n");
        return;
    }
    origin_open(&o, model, 7);
    enum pd_status status = get_from(&o, 0xe, &held, 1 << 30);
    const bool memory = !status && held->memory;
    if (!status)
        check(held, model, 0xe);
    store_free(held);
    enum pd_status small = get_from(&o, 0x2, &held, 1 << 30);
    const bool disk = !small && !held->memory;
    store_free(held);
    gguf_close(o.g);
    umount(cache);
    assert_int_equal(status, PD_OK);
    assert_true(memory);
    assert_int_equal(small, PD_OK);
    assert_true(disk);
}

/* A split model can't be held in memory: the numbers are told. */
static void test_no_room(void **state)
{
    (void)state;
    struct origin o;
    struct store_held *held;
    struct pd_error err = {0};
    unsigned mask = 0xfff;
    char second[96], command[200];
    snprintf(command, sizeof command, "mkdir -p '%s'", cache);
    assert_int_equal(system(command), 0);
    if (mount("none", cache, "tmpfs", 0, "size=400k")) {
        print_message("skipped: no small disk can be mounted here\n");
        return;
    }
    snprintf(model, sizeof model, "%s/a-00001-of-00002.gguf", dir);
    snprintf(second, sizeof second, "%s/a-00002-of-00002.gguf", dir);
    write_model(model, 1, 0, 2);
    write_model(second, 2, 1, 2);
    origin_open(&o, model, 7);
    enum pd_status status = store_get(
        &held, &(struct store_options){.dir = cache, .source = &o.source, .wanted = wanted, .user = &mask},
        &err);
    umount(cache);
    assert_int_equal(status, PD_ERR_FILE);
    assert_null(held);
    assert_true(o.sent < 100000); /* told before anything big was sent */
    assert_non_null(strstr(err.text, "needs 2.0 MB for its layers' weights"));
    assert_non_null(strstr(err.text, "PIPEDEC_CACHE"));
    gguf_close(o.g);
}

static void test_no_folder(void **state)
{
    (void)state;
    struct origin o;
    struct store_held *held;
    snprintf(cache, sizeof cache, "/proc/none");
    origin_open(&o, model, 7);
    assert_int_equal(get_from(&o, 0xe, &held, 1 << 30), PD_OK);
    assert_true(held->memory);
    check(held, model, 0xe);
    store_free(held);
    gguf_close(o.g);
}

static void test_environment(void **state)
{
    (void)state;
    uint64_t limit;
    struct pd_error err;
    setenv("PIPEDEC_CACHE", "/x", 1);
    char *path = store_dir();
    assert_string_equal(path, "/x");
    free(path);
    unsetenv("PIPEDEC_CACHE");
    setenv("XDG_CACHE_HOME", "/y", 1);
    path = store_dir();
    assert_string_equal(path, "/y/pipedec/weights");
    free(path);
    setenv("PIPEDEC_CACHE_LIMIT", "2.5", 1);
    assert_int_equal(store_limit(&limit, &err), PD_OK);
    assert_true(limit == 2500000000u);
    static const char *const bad[] = {"x", "-1", "0", "nan", "1e300", "5 GB"};
    for (size_t i = 0; i < PD_COUNT(bad); i++) {
        setenv("PIPEDEC_CACHE_LIMIT", bad[i], 1);
        assert_int_equal(store_limit(&limit, &err), PD_ERR_USAGE);
    }
    unsetenv("PIPEDEC_CACHE_LIMIT");
    assert_int_equal(store_limit(&limit, &err), PD_OK);
    assert_true(limit == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(test_once),          TEST(test_another_cut),   TEST(test_in_use),  TEST(test_damage),
        TEST(test_changed_model), TEST(test_another_model), TEST(test_cut_off), TEST(test_hostile),
        TEST(test_split),         TEST(test_disk_full),     TEST(test_no_room), TEST(test_no_folder),
        TEST(test_environment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
