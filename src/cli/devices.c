/* pipedec devices: what there is to compute on, and what each is good for. */
#include "cli/cli.h"
#include "model/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <yyjson.h>

enum { KEY_JSON = CLI_KEY_OWN };

static const struct argp_option options[] = {
    {"json", KEY_JSON, NULL, 0, "one JSON object instead of a table", 0},
    {0},
};

static const char doc[] =
    "List the devices that can hold stages or the draft (--device, --draft-device), as ggml's backends offer "
    "them.\v"
    "The CPU is always there. GPUs appear when a backend of ggml for them is installed (Debian: "
    "libggml0-backend-vulkan), or named in GGML_BACKEND_PATH.\n\n"
    "Examples:\n"
    "  pipedec devices\n"
    "  pipedec devices --json | jq -r '.devices[].name'\n"
    "  pipedec run -m model.gguf --device vulkan0 -p \"Hello\"\n";

struct devices_args {
    bool json;
};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct devices_args *a = state->input;
    switch (key) {
    case KEY_JSON:
        a->json = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s': this command takes options only", arg);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const char *good_for(const struct device *d)
{
    return d->exact ? "stages and draft; exact, batches can be stopped" : "stages and draft; not exact";
}

static void print_table(void)
{
    printf("%-10s %-15s %-9s %9s %9s  %s\n", "device", "kind", "backend", "free GB", "GB", "good for");
    for (int i = 0; i < device_count(); i++) {
        const struct device *d = device_at(i);
        uint64_t unused, total;
        device_memory(d, &unused, &total);
        printf("%-10s %-15s %-9s %9.2f %9.2f  %s\n", d->name, device_kind_name(d->kind), d->backend,
               (double)unused * 1e-9, (double)total * 1e-9, good_for(d));
        printf("%-10s %s\n", "", d->description);
    }
}

static enum pd_status print_json(struct pd_error *err)
{
    yyjson_mut_doc *json = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *root = yyjson_mut_obj(json), *list = yyjson_mut_arr(json);
    yyjson_mut_doc_set_root(json, root);
    for (int i = 0; i < device_count(); i++) {
        const struct device *d = device_at(i);
        yyjson_mut_val *o = yyjson_mut_arr_add_obj(json, list);
        uint64_t unused, total;
        device_memory(d, &unused, &total);
        yyjson_mut_obj_add_str(json, o, "name", d->name);
        yyjson_mut_obj_add_str(json, o, "kind", device_kind_name(d->kind));
        yyjson_mut_obj_add_str(json, o, "description", d->description);
        yyjson_mut_obj_add_str(json, o, "backend", d->backend);
        yyjson_mut_obj_add_uint(json, o, "memory_free", unused);
        yyjson_mut_obj_add_uint(json, o, "memory_total", total);
        yyjson_mut_obj_add_bool(json, o, "exact", d->exact);
        yyjson_mut_obj_add_bool(json, o, "can_stop", d->can_stop);
        yyjson_mut_obj_add_bool(json, o, "async", d->async);
    }
    yyjson_mut_obj_add_val(json, root, "devices", list);
    return cli_put_json(json, false, err);
}

int cmd_devices(int argc, char **argv)
{
    static const struct argp argp = {options, parse_option, "", doc, NULL, NULL, NULL};
    struct devices_args a = {0};
    struct pd_error err = {0};
    cli_parse(&argp, argc, argv, &a);
    if (!device_count())
        return cli_fail_with(PD_ERR_UNSUPPORTED,
                             "ggml's CPU backend was not found; install it or set GGML_BACKEND_PATH");
    enum pd_status status = PD_OK;
    if (a.json)
        status = print_json(&err);
    else
        print_table();
    return status ? cli_fail(&err) : PD_OK;
}
