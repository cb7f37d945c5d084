/* needs: model base */
/* The two-level KV cache against a naive one: random rows, commits, drops and truncations; after each, every live
 * row must still own the bytes that were written for it, see exactly its ancestors, and lie above its parent.
 * PD_SEED=N repeats a run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <time.h>

#include "model/model_impl.h"

enum { LAYERS = 2, WIDTH = 32, CTX = 90, TREE_ROWS = 20, BATCH = 8, NODES_MAX = 4000, SLOTS_MAX = 512 };

struct naive_node {
    uint32_t parent; /* id; 0: a committed row */
    int pos;
    bool live;
};

struct world {
    struct model m; /* only what kv_new reads, and the backend on other devices than the CPU */
    struct kv *kv;
    uint64_t seed, draws;
    struct naive_node nodes[NODES_MAX];
    uint32_t n_nodes; /* ids 1 .. n_nodes - 1 are used */
    uint32_t committed[CTX];
    int n_committed;
};

static int draw(struct world *w, int below)
{
    return (int)(rng_u64(w->seed, w->draws++, 0, 0) % (uint64_t)below);
}

static void world_init_on(struct world *w, uint64_t seed, const struct device *device)
{
    struct pd_error err;
    memset(w, 0, sizeof *w);
    w->m.device = device;
    if (!device->host)
        assert_int_equal(backend_new(&w->m.exact, device, 1, false, &err), PD_OK);
    w->seed = seed;
    w->n_nodes = 1;
    w->m.p.head_dim = w->m.p.v_dim = WIDTH;
    w->m.p.n_head_kv = 1;
    w->m.o = (struct model_options){
        .layer_count = LAYERS, .ctx = CTX, .tree_rows = TREE_ROWS, .kv_type = PD_KV_F32};
    assert_int_equal(kv_new(&w->kv, &w->m, &err), PD_OK);
}

static void world_init(struct world *w, uint64_t seed)
{
    world_init_on(w, seed, device_cpu());
}

static void world_free(struct world *w)
{
    kv_free(w->kv);
    backend_free(&w->m.exact);
}

/* What model_run would do: K and V of layer l hold id + l / 8, and its negative. */
static void write_row(struct world *w, int64_t slot, uint32_t id)
{
    float k[WIDTH], v[WIDTH];
    struct pd_error err;
    assert_int_equal(rows_flush(w->kv->rows, &w->m.exact, &err), PD_OK);
    for (int l = 0; l < LAYERS; l++) {
        for (int i = 0; i < WIDTH; i++) {
            k[i] = (float)id + (float)l / 8;
            v[i] = -k[i];
        }
        ggml_backend_tensor_set(w->kv->rows->k[l], k, (size_t)slot * sizeof k, sizeof k);
        ggml_backend_tensor_set(w->kv->rows->v[l], v, (size_t)slot * sizeof v, sizeof v);
    }
}

/* All of K and V as they are now, [WIDTH, slots] for each layer. */
static float now_k[LAYERS][SLOTS_MAX * WIDTH], now_v[LAYERS][SLOTS_MAX * WIDTH];

static void fetch(struct world *w)
{
    struct pd_error err;
    const size_t bytes = (size_t)w->kv->n_slots * WIDTH * sizeof(float);
    assert_true(w->kv->n_slots <= SLOTS_MAX);
    assert_int_equal(rows_flush(w->kv->rows, &w->m.exact, &err), PD_OK);
    for (int l = 0; l < LAYERS; l++) {
        ggml_backend_tensor_get(w->kv->rows->k[l], now_k[l], 0, bytes);
        ggml_backend_tensor_get(w->kv->rows->v[l], now_v[l], 0, bytes);
    }
}

static void check_row(int64_t slot, uint32_t id)
{
    for (int l = 0; l < LAYERS; l++)
        for (int i = 0; i < WIDTH; i += WIDTH - 1) {
            assert_true(now_k[l][slot * WIDTH + i] == (float)id + (float)l / 8);
            assert_true(now_v[l][slot * WIDTH + i] == -(float)id - (float)l / 8);
        }
}

static int live_count(const struct world *w)
{
    int n = 0;
    for (uint32_t id = 1; id < w->n_nodes; id++)
        n += w->nodes[id].live;
    return n;
}

static uint32_t some_live(struct world *w, bool child_of_committed)
{
    uint32_t pick = 0;
    int seen = 0;
    for (uint32_t id = 1; id < w->n_nodes; id++)
        if (w->nodes[id].live && (!child_of_committed || w->nodes[id].parent == 0) && draw(w, ++seen) == 0)
            pick = id;
    return pick;
}

static int slot_of(const struct kv *kv, uint32_t id)
{
    for (int s = 0; s < kv->n_slots; s++)
        if (kv->slots[s].live && kv->slots[s].node.v == id)
            return s;
    fail_msg("node %u has no slot", id);
    return -1;
}

/* The mask as it should be, from the naive model, against kv_mask's. */
static void check_mask(const struct world *w, uint32_t id, int64_t slot)
{
    const struct kv *kv = w->kv;
    int n_kv = graph_span(kv), visible = w->n_committed;
    ggml_fp16_t mask[SLOTS_MAX];
    assert_true(n_kv <= kv->n_slots && slot < n_kv);
    kv_mask(kv, slot, MODEL_TREE, n_kv, 0, mask);
    for (int s = 0; s < w->n_committed; s++)
        assert_int_equal(mask[s], 0);
    for (uint32_t up = id; up; up = w->nodes[up].parent, visible++)
        assert_int_equal(mask[slot_of(kv, up)], 0);
    for (int s = 0; s < n_kv; s++)
        visible -= mask[s] == 0;
    assert_int_equal(visible, 0);
}

static void check(struct world *w)
{
    const struct kv *kv = w->kv;
    fetch(w);
    assert_int_equal(kv_committed(kv), w->n_committed);
    assert_int_equal(kv_tree_rows(kv), live_count(w));
    for (int s = 0; s < w->n_committed; s++)
        check_row(s, w->committed[s]);
    for (uint32_t id = 1; id < w->n_nodes; id++) {
        assert_int_equal(kv_has(kv, (node_id){id}), w->nodes[id].live);
        if (!w->nodes[id].live)
            continue;
        int slot = slot_of(kv, id);
        check_row(slot, id);
        assert_true(slot >= w->n_committed);
        if (w->nodes[id].parent)
            assert_true(slot > slot_of(kv, w->nodes[id].parent));
        check_mask(w, id, slot);
    }
}

static void kill_orphans(struct world *w)
{
    for (uint32_t id = 1; id < w->n_nodes; id++)
        if (w->nodes[id].parent && !w->nodes[w->nodes[id].parent].live)
            w->nodes[id].live = false;
}

/* A batch of tree rows, parents among the live ones and the batch itself; may be refused when the area is full. */
static void do_rows(struct world *w)
{
    struct row rows[BATCH];
    int64_t slots[BATCH];
    struct pd_error err = {0};
    uint32_t before = w->n_nodes;
    int n = 0;
    for (int want = 1 + draw(w, BATCH); n < want && w->n_nodes < NODES_MAX; n++) {
        uint32_t parent = draw(w, 3) ? some_live(w, false) : 0, id = w->n_nodes++;
        int pos = parent ? w->nodes[parent].pos + 1 : w->n_committed;
        if (pos >= CTX) {
            w->n_nodes--;
            break;
        }
        /* An unknown parent, such as one that has been committed, means the newest committed row. */
        node_id named = {parent || !w->n_committed ? parent : w->committed[w->n_committed - 1]};
        rows[n] = (struct row){.node = {id}, .parent = named, .pos = pos};
        w->nodes[id] = (struct naive_node){parent, pos, true};
    }
    if (n == 0)
        return;
    enum pd_status status = kv_place(w->kv, rows, n, MODEL_TREE, slots, &err);
    if (live_count(w) > TREE_ROWS) {
        assert_int_equal(status, PD_ERR_MEMORY);
        for (uint32_t id = before; id < w->n_nodes; id++)
            w->nodes[id].live = false;
        return;
    }
    assert_int_equal(status, PD_OK); /* whatever the slots looked like: compaction makes room */
    for (int i = 0; i < n; i++)
        write_row(w, slots[i], rows[i].node.v);
    if (draw(w, 6) == 0) { /* stopped */
        kv_unplace(w->kv, slots, n, MODEL_TREE);
        for (uint32_t id = before; id < w->n_nodes; id++)
            w->nodes[id].live = false;
    }
}

static void do_prefill(struct world *w)
{
    struct row rows[BATCH];
    int64_t slots[BATCH];
    struct pd_error err;
    int n = 1 + draw(w, BATCH);
    for (int i = 0; i < n; i++)
        rows[i] = (struct row){.pos = w->n_committed + i};
    enum pd_status status = kv_place(w->kv, rows, n, MODEL_PREFILL, slots, &err);
    if (live_count(w)) {
        assert_int_equal(status, PD_ERR_PEER);
        return;
    }
    if (w->n_committed + n > CTX) {
        assert_int_equal(status, PD_ERR_MEMORY);
        return;
    }
    assert_int_equal(status, PD_OK);
    for (int i = 0; i < n; i++) {
        assert_int_equal(slots[i], w->n_committed + i);
        write_row(w, slots[i], 100000 + (uint32_t)i);
        w->committed[w->n_committed + i] = 100000 + (uint32_t)i;
    }
    w->n_committed += n;
}

static void do_commit(struct world *w)
{
    uint32_t id = some_live(w, true);
    if (!id)
        return;
    kv_commit(w->kv, (node_id){id});
    for (uint32_t other = 1; other < w->n_nodes; other++)
        if (w->nodes[other].parent == 0 && other != id)
            w->nodes[other].live = false;
    kill_orphans(w);
    for (uint32_t other = 1; other < w->n_nodes; other++)
        if (w->nodes[other].parent == id)
            w->nodes[other].parent = 0;
    w->nodes[id].live = false;
    w->committed[w->n_committed++] = id;
}

static void do_drop(struct world *w)
{
    node_id ids[3];
    for (int i = 0; i < 3; i++) {
        ids[i].v = draw(w, 2) ? some_live(w, false) : (uint32_t)draw(w, NODES_MAX);
        if (ids[i].v < w->n_nodes)
            w->nodes[ids[i].v].live = false;
    }
    kill_orphans(w);
    kv_drop(w->kv, ids, 3);
}

static void do_truncate(struct world *w)
{
    int pos = draw(w, w->n_committed + 2);
    kv_truncate(w->kv, pos);
    w->n_committed = PD_MIN(w->n_committed, pos);
    for (uint32_t id = 1; id < w->n_nodes; id++)
        w->nodes[id].live = false;
}

static uint64_t seed_base(void)
{
    const char *given = getenv("PD_SEED");
    return given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
}

static void step(struct world *w)
{
    int what = draw(w, 40);
    if (what < 22)
        do_rows(w);
    else if (what < 32)
        do_commit(w);
    else if (what < 36)
        do_drop(w);
    else if (what < 38)
        do_prefill(w);
    else if (what == 38)
        kv_drop_tree(w->kv), memset(w->nodes, 0, sizeof w->nodes);
    else
        do_truncate(w);
}

/* check_every: moves of several steps are carried out together. */
static void against_naive(const struct device *device, uint64_t runs, int check_every)
{
    uint64_t base = seed_base();
    for (uint64_t run = 0; run < runs; run++) {
        static struct world w;
        world_init_on(&w, base + run, device);
        print_message("%s PD_SEED=%llu\n", device->name, (unsigned long long)(base + run));
        for (int i = 0; i < 150; i++) {
            step(&w);
            if (i % check_every == 0)
                check(&w);
        }
        check(&w);
        world_free(&w);
        if (getenv("PD_SEED"))
            break;
    }
}

static void test_against_naive(void **state)
{
    (void)state;
    against_naive(device_cpu(), 60, 1);
}

static void test_on_devices(void **state)
{
    (void)state;
    for (int i = 0; i < device_count(); i++)
        if (!device_at(i)->host)
            against_naive(device_at(i), 6, 3);
}

/* Rows of one cache into another. */
static void test_copy(void **state)
{
    (void)state;
    for (int i = 0; i < device_count(); i++) {
        static struct world w, other;
        world_init_on(&w, 1, device_at(i));
        world_init_on(&other, 1, device_at(i));
        kv_free(other.kv); /* of the same model, that is */
        struct pd_error err;
        assert_int_equal(kv_new(&other.kv, &w.m, &err), PD_OK);
        for (int k = 0; k < 4; k++)
            do_prefill(&w);
        kv_copy(other.kv, w.kv, 7);
        other.n_committed = PD_MIN(w.n_committed, 7);
        memcpy(other.committed, w.committed, sizeof w.committed);
        check(&other);
        world_free(&other);
        world_free(&w);
    }
}

static enum pd_status place_one(struct kv *kv, uint32_t id, uint32_t parent, int pos, int64_t *slot)
{
    struct row row = {.node = {id}, .parent = {parent}, .pos = pos};
    struct pd_error err;
    return kv_place(kv, &row, 1, MODEL_TREE, slot, &err);
}

/* What a peer could send. */
static void test_bad_rows(void **state)
{
    (void)state;
    struct world w;
    int64_t slot;
    world_init(&w, 1);
    assert_int_equal(place_one(w.kv, 1, 0, 0, &slot), PD_OK);
    assert_int_equal(place_one(w.kv, 1, 0, 0, &slot), PD_ERR_PEER);  /* twice */
    assert_int_equal(place_one(w.kv, 0, 1, 1, &slot), PD_ERR_PEER);  /* no id */
    assert_int_equal(place_one(w.kv, 2, 1, 2, &slot), PD_ERR_PEER);  /* leaves a position out */
    assert_int_equal(place_one(w.kv, 2, 1, -1, &slot), PD_ERR_PEER); /* before the beginning */
    assert_int_equal(place_one(w.kv, 2, 7, 1, &slot), PD_ERR_PEER);  /* parent unknown, not at the end */
    assert_int_equal(kv_tree_rows(w.kv), 1);
    assert_int_equal(place_one(w.kv, 2, 1, 1, &slot), PD_OK);
    world_free(&w);
}

/* A chain that walks on by commits, with wide levels around it, drifts upwards until only compaction helps; and a
 * path as deep as the area fits. */
static void test_drift(void **state)
{
    (void)state;
    struct world w;
    int64_t slot;
    world_init(&w, 1);
    uint32_t tip = 1, next = 2;
    assert_int_equal(place_one(w.kv, tip, 0, 0, &slot), PD_OK);
    for (int pos = 1; pos < CTX; pos++) {
        uint32_t last = 0;
        for (int i = 0; i < TREE_ROWS - 1; i++)
            assert_int_equal(place_one(w.kv, last = next++, tip, pos, &slot), PD_OK);
        kv_commit(w.kv, (node_id){tip});
        kv_commit(w.kv, (node_id){last});
        assert_int_equal(kv_tree_rows(w.kv), 0);
        if (++pos < CTX)
            assert_int_equal(place_one(w.kv, tip = next++, last, pos, &slot), PD_OK);
    }
    assert_int_equal(kv_committed(w.kv), CTX);
    assert_int_equal(place_one(w.kv, next, 0, CTX, &slot), PD_ERR_MEMORY);
    world_free(&w);
}

static void test_too_big(void **state)
{
    (void)state;
    struct world w = {0};
    struct pd_error err = {0};
    w.m.device = device_cpu();
    w.m.p.head_dim = w.m.p.v_dim = 128;
    w.m.p.n_head_kv = 64;
    w.m.o = (struct model_options){.layer_count = 100, .ctx = 1 << 26, .tree_rows = 16, .kv_type = PD_KV_F32};
    assert_int_equal(kv_new(&w.kv, &w.m, &err), PD_ERR_MEMORY);
    assert_non_null(strstr(err.text, "MiB"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_naive), cmocka_unit_test(test_on_devices),
        cmocka_unit_test(test_copy),          cmocka_unit_test(test_bad_rows),
        cmocka_unit_test(test_drift),         cmocka_unit_test(test_too_big),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
