/* skerry collection ..., wait, verify, compact, snapshot, restore. */
#include "tools/skerry/commands.h"

#include <stdlib.h>
#include <string.h>

enum { NOT_GIVEN = UINT32_MAX };

static struct {
    uint32_t dim, m, ef_construction, shards, nlist, pq_m, refine;
    const char *metric, *index, *profile, *vector;
    uint64_t memory_bytes_max;
    struct cli_list vectors, fields, drops;
} options = {.nlist = NOT_GIVEN, .pq_m = NOT_GIVEN, .refine = NOT_GIVEN};

/* Of create and alter alike. */
#define INDEX_OPTIONS                                                                              \
    {"m", CLI_U32, &options.m, "N", "hnsw: half the edges of a record (16)"},                      \
    {"ef-construction", CLI_U32, &options.ef_construction, "N", "hnsw: beam while linking (200)"}, \
    {"profile", CLI_TEXT, &options.profile, "NAME", "hnsw: balanced (default), speed or memory"},  \
    {"nlist", CLI_U32, &options.nlist, "N",                                                        \
     "ivf_flat, ivf_pq, hybrid: lists (0: as many as fit the records)"},                           \
    {"pq-m", CLI_U32, &options.pq_m, "N",                                                          \
     "ivf_pq, hybrid: parts of a code, an even number (0: dim / 4)"},                              \
    {"refine", CLI_U32, &options.refine, "N",                                                      \
     "ivf_pq, hybrid: so many times the limit are scored again (0: automatic)"}

static const struct cli_option create_options[] = {
    {"dim", CLI_U32, &options.dim, "N", "the vectors' dimension, 1 to 8,192"},
    {"metric", CLI_TEXT, &options.metric, "NAME", "cosine (default), ip or l2"},
    {"index", CLI_TEXT, &options.index, "TYPE",
     "hnsw (default), flat, ivf_flat, ivf_pq or hybrid"},
    INDEX_OPTIONS,
    {"vector", CLI_LIST, &options.vectors, "NAME:DIM[:METRIC]",
     "a named vector field, instead of --dim; may be given again"},
    {"field", CLI_LIST, &options.fields, "NAME:KIND",
     "an indexed payload field: keyword, integer, float, bool, datetime or geo; may be given "
     "again"},
    {"memory-bytes-max", CLI_U64, &options.memory_bytes_max, "BYTES",
     "memory budget of its indexes; the node's where not given"},
    {"shards", CLI_U32, &options.shards, "N", "how many shards; the node decides where not given"},
    {0},
};

static const struct cli_option alter_options[] = {
    {"field", CLI_LIST, &options.fields, "NAME:KIND", "a payload field to index from now on"},
    {"drop-field", CLI_LIST, &options.drops, "NAME", "a payload field to index no longer"},
    {"index", CLI_TEXT, &options.index, "TYPE",
     "another type of index: flat, hnsw, ivf_flat, ivf_pq or hybrid"},
    INDEX_OPTIONS,
    {"vector", CLI_TEXT, &options.vector, "NAME",
     "whose index changes, where there are several vector fields"},
    {"memory-bytes-max", CLI_U64, &options.memory_bytes_max, "BYTES",
     "memory budget of its indexes"},
    {0},
};

/* JSON through jansson, whose constructors answer NULL when memory is out: the end checks. */
static void set_number(json_t *index, const char *name, uint32_t value, uint32_t absent)
{
    if (value != absent)
        json_object_set_new(index, name, json_integer(value));
}

/* What was said of the index, {} when nothing was. */
static json_t *index_settings(void)
{
    json_t *index = json_object();
    if (options.index != NULL)
        json_object_set_new(index, "type", json_string(options.index));
    set_number(index, "m", options.m, 0);
    set_number(index, "ef_construction", options.ef_construction, 0);
    set_number(index, "nlist", options.nlist, NOT_GIVEN);
    set_number(index, "pq_m", options.pq_m, NOT_GIVEN);
    set_number(index, "refine", options.refine, NOT_GIVEN);
    if (options.profile != NULL)
        json_object_set_new(index, "profile", json_string(options.profile));
    return index;
}

static void set_index(json_t *field)
{
    json_t *index = index_settings();
    if (json_object_size(index) != 0)
        json_object_set(field, "index", index);
    json_decref(index);
}

static json_t *vector_field(long dim, const char *metric)
{
    json_t *field = json_object();
    json_object_set_new(field, "dim", json_integer(dim));
    json_object_set_new(field, "metric", json_string(metric));
    set_index(field);
    return field;
}

static int set_vectors(json_t *fields)
{
    const char *metric = options.metric == NULL ? "cosine" : options.metric;
    if ((options.dim == 0) == (options.vectors.count == 0))
        return cli_usage("give --dim N, or --vector NAME:DIM[:METRIC] for each of several fields");
    if (options.dim != 0) {
        json_object_set_new(fields, "vectors", vector_field((long)options.dim, metric));
        return CLI_DONE;
    }
    json_t *vectors = json_object();
    json_object_set_new(fields, "vectors", vectors);
    for (size_t i = 0; i < options.vectors.count; i++) {
        char name[80], kind[32] = "";
        unsigned dim = 0;
        if (sscanf(options.vectors.values[i], "%79[^:]:%u:%31s", name, &dim, kind) < 2)
            return cli_usage("--vector %s: want NAME:DIM or NAME:DIM:METRIC",
                             options.vectors.values[i]);
        json_object_set_new(vectors, name,
                            vector_field((long)dim, kind[0] == '\0' ? metric : kind));
    }
    return CLI_DONE;
}

static int set_payload(json_t *fields, const char *key)
{
    if (options.fields.count == 0)
        return CLI_DONE;
    json_t *payload = json_object();
    json_object_set_new(fields, key, payload);
    for (size_t i = 0; i < options.fields.count; i++) {
        const char *text = options.fields.values[i], *colon = strrchr(text, ':');
        if (colon == NULL || colon == text || colon[1] == '\0')
            return cli_usage("--field %s: want NAME:KIND, for instance lexname:keyword", text);
        json_t *kind = json_string(colon + 1);
        char *name = strndup(text, (size_t)(colon - text));
        if (name != NULL)
            json_object_set_new(payload, name, kind);
        free(name);
    }
    return CLI_DONE;
}

static int say_done(json_t *reply, const char *words, const char *name)
{
    if (reply != NULL)
        printf("%s %s\n", words, name);
    json_decref(reply);
    return CLI_DONE;
}

static void set_memory(json_t *fields)
{
    if (options.memory_bytes_max != 0)
        json_object_set_new(fields, "memory_bytes_max",
                            json_integer((json_int_t)options.memory_bytes_max));
}

static int create(int count, char **arguments)
{
    json_t *fields = json_object(), *reply = NULL;
    (void)count;
    json_object_set_new(fields, "collection", json_string(arguments[0]));
    int status = set_vectors(fields);
    if (status == CLI_DONE)
        status = set_payload(fields, "payload");
    if (status != CLI_DONE) {
        json_decref(fields);
        return status;
    }
    if (options.shards != 0)
        json_object_set_new(fields, "shards", json_integer(options.shards));
    set_memory(fields);
    status = cli_call("create_collection", fields, &reply);
    return status == CLI_DONE ? say_done(reply, "created", arguments[0]) : status;
}

const struct cli_command cli_collection_create = {
    .name = "collection create",
    .arguments = "NAME",
    .arguments_min = 1,
    .arguments_max = 1,
    .summary = "Make a collection",
    .details =
        "Example: skerry collection create docs --dim 384 --metric cosine --field pos:keyword",
    .options = create_options,
    .run = create,
};

static json_t *for_collection(const char *name)
{
    json_t *fields = json_object();
    json_object_set_new(fields, "collection", json_string(name));
    return fields;
}

static int list(int count, char **arguments)
{
    json_t *reply = NULL, *collection;
    size_t i;
    (void)count;
    (void)arguments;
    int status = cli_call("list_collections", NULL, &reply);
    json_array_foreach(json_object_get(reply, "collections"), i, collection)
    {
        const char *name = json_string_value(collection);
        if (name == NULL)
            name = cli_json_text(collection, "name");
        printf("%s\n", name);
    }
    json_decref(reply);
    return status;
}

const struct cli_command cli_collection_list = {
    .name = "collection list",
    .arguments = "",
    .summary = "List the collections",
    .run = list,
};

static int describe(int count, char **arguments)
{
    (void)count;
    return cli_show_call("describe_collection", for_collection(arguments[0]));
}

const struct cli_command cli_collection_describe = {
    .name = "collection describe",
    .arguments = "NAME",
    .arguments_min = 1,
    .arguments_max = 1,
    .summary = "Show a collection's schema, counts and index state",
    .run = describe,
};

static int drop(int count, char **arguments)
{
    json_t *reply = NULL;
    (void)count;
    int status = cli_call("drop_collection", for_collection(arguments[0]), &reply);
    return status == CLI_DONE ? say_done(reply, "dropped", arguments[0]) : status;
}

const struct cli_command cli_collection_drop = {
    .name = "collection drop",
    .arguments = "NAME",
    .arguments_min = 1,
    .arguments_max = 1,
    .summary = "Drop a collection and all its records",
    .run = drop,
};

static int alter(int count, char **arguments)
{
    json_t *fields = for_collection(arguments[0]), *reply = NULL;
    (void)count;
    set_index(fields);
    json_t *index = json_object_get(fields, "index");
    if (options.fields.count == 0 && options.drops.count == 0 && index == NULL &&
        options.memory_bytes_max == 0) {
        json_decref(fields);
        return cli_usage("nothing to change: give --field NAME:KIND, --drop-field NAME, --index TYPE, "
                         "--profile NAME or another parameter of the index, or "
                         "--memory-bytes-max BYTES");
    }
    set_memory(fields);
    if (options.vector != NULL && index != NULL) {
        json_t *named = json_object();
        json_object_set(named, options.vector, index);
        json_object_set_new(fields, "index", named);
    }
    int status = set_payload(fields, "payload");
    if (options.drops.count > 0 && json_object_get(fields, "payload") == NULL)
        json_object_set_new(fields, "payload", json_object());
    for (size_t i = 0; i < options.drops.count; i++)
        json_object_set_new(json_object_get(fields, "payload"), options.drops.values[i],
                            json_null());
    if (status != CLI_DONE) {
        json_decref(fields);
        return status;
    }
    status = cli_call("alter_collection", fields, &reply);
    return status == CLI_DONE ? say_done(reply, "altered", arguments[0]) : status;
}

const struct cli_command cli_collection_alter = {
    .name = "collection alter",
    .arguments = "NAME",
    .arguments_min = 1,
    .arguments_max = 1,
    .summary = "Add or drop indexed payload fields, change indexes",
    .details = "An index changes behind, while searches go on; 'skerry wait NAME' returns when it is done.\n"
               "Examples:\n"
               "  skerry collection alter docs --profile memory\n"
               "  skerry collection alter docs --index ivf_pq --nlist 1024",
    .options = alter_options,
    .run = alter,
};

/* ---- Maintenance: long work, so a deadline of its own where none is given ---- */

enum { LONG_DEADLINE_MS = 60000 };

static void take_time(void)
{
    if (cli_settings.deadline_ms == 0)
        cli_settings.deadline_ms = LONG_DEADLINE_MS;
}

static int wait_indexed(int count, char **arguments)
{
    json_t *fields = for_collection(arguments[0]), *reply = NULL;
    (void)count;
    take_time();
    json_object_set_new(fields, "for", json_string("indexed"));
    int status = cli_call("wait", fields, &reply);
    return status == CLI_DONE ? say_done(reply, "indexed", arguments[0]) : status;
}

const struct cli_command cli_wait = {
    .name = "wait",
    .arguments = "NAME",
    .arguments_min = 1,
    .arguments_max = 1,
    .summary = "Wait until a collection's indexes have caught up with its writes",
    .run = wait_indexed,
};

static int verify(int count, char **arguments)
{
    (void)count;
    take_time();
    return cli_show_call("verify", for_collection(arguments[0]));
}

const struct cli_command cli_verify = {
    .name = "verify",
    .arguments = "NAME",
    .arguments_min = 1,
    .arguments_max = 1,
    .summary = "Check every record and index of a collection, and mend what can be mended",
    .run = verify,
};

static int compact(int count, char **arguments)
{
    (void)count;
    take_time();
    return cli_show_call("compact", for_collection(arguments[0]));
}

const struct cli_command cli_compact = {
    .name = "compact",
    .arguments = "NAME",
    .arguments_min = 1,
    .arguments_max = 1,
    .summary = "Give the space of deleted records back",
    .run = compact,
};

static int snapshot_op(const char *op, char **arguments, json_t **reply)
{
    json_t *fields = for_collection(arguments[0]);
    *reply = NULL;
    if (strchr(arguments[1], '/') != NULL) {
        json_decref(fields);
        return cli_usage(
            "'%s' is a path; give a name: the snapshot lies in the node's folder snapshots/",
            arguments[1]);
    }
    take_time();
    json_object_set_new(fields, "name", json_string(arguments[1]));
    return cli_call(op, fields, reply);
}

static int snapshot(int count, char **arguments)
{
    json_t *reply;
    char bytes[32];
    (void)count;
    int status = snapshot_op("snapshot", arguments, &reply);
    if (reply != NULL)
        printf("snapshot of %s in snapshots/%s, %s\n", arguments[0], arguments[1],
               cli_bytes_text(cli_json_number(reply, "bytes"), bytes));
    json_decref(reply);
    return status;
}

static int restore(int count, char **arguments)
{
    json_t *reply;
    char records[32];
    (void)count;
    int status = snapshot_op("restore", arguments, &reply);
    if (reply != NULL)
        printf("restored %s from snapshots/%s, %s records\n", arguments[0], arguments[1],
               cli_count_text((uint64_t)cli_json_number(reply, "records"), records));
    json_decref(reply);
    return status;
}

const struct cli_command cli_snapshot = {
    .name = "snapshot",
    .arguments = "NAME FILE",
    .arguments_min = 2,
    .arguments_max = 2,
    .summary = "Write a collection as it is now to a file in the node's folder snapshots/",
    .run = snapshot,
};

const struct cli_command cli_restore = {
    .name = "restore",
    .arguments = "NAME FILE",
    .arguments_min = 2,
    .arguments_max = 2,
    .summary = "Make a collection from a snapshot in the node's folder snapshots/",
    .run = restore,
};
