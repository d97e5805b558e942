/* skerry search, get, delete, count. */
#include "tools/skerry/commands.h"
#include "tools/skerry/files.h"

#include <stdlib.h>
#include <string.h>

static struct {
    const char *id, *like, *file, *filter, *using;
    uint32_t limit, ef, nprobe, row;
    double score_threshold, recall;
    bool exact, with_vector;
    struct cli_optional with_payload;
} options = {.row = UINT32_MAX, .score_threshold = -1e300};

static const struct cli_option search_options[] = {
    {"id", CLI_TEXT, &options.id, "ID", "search with the vector of this record, itself left out"},
    {"like", CLI_TEXT, &options.like, "ID", "the same as --id"},
    {"file", CLI_TEXT, &options.file, "Q.npy", "search with every row of this file"},
    {"row", CLI_U32, &options.row, "N", "only row N of the file, from 0"},
    {"limit", CLI_U32, &options.limit, "N", "how many neighbours (10)"},
    {"filter", CLI_TEXT, &options.filter, "JSON", "only records for which this holds"},
    {"ef", CLI_U32, &options.ef, "N", "hnsw: the beam of the search (64)"},
    {"nprobe", CLI_U32, &options.nprobe, "N",
     "ivf_flat, ivf_pq, hybrid: lists looked at (automatic)"},
    {"recall", CLI_DOUBLE, &options.recall, "R",
     "as much work as finds this share of the true nearest, 0.5 to 0.999"},
    {"exact", CLI_FLAG, &options.exact, NULL, "compare with every record"},
    {"score-threshold", CLI_DOUBLE, &options.score_threshold, "S", "the worst score let in"},
    {"using", CLI_TEXT, &options.using, "NAME", "which vector field, where there are several"},
    {"with-payload", CLI_OPTIONAL, &options.with_payload, "NAME,...",
     "show the payloads, or these members of them"},
    {"with-vector", CLI_FLAG, &options.with_vector, NULL, "give the vectors (with --json)"},
    {0},
};

static const struct cli_option get_options[] = {
    {"with-vector", CLI_FLAG, &options.with_vector, NULL, "give the vectors too"},
    {0},
};

static const struct cli_option filter_options[] = {
    {"filter", CLI_TEXT, &options.filter, "JSON", "only records for which this holds"},
    {0},
};

/* ---- Showing ---- */

static void print_wrapped(const char *text, unsigned indent)
{
    unsigned width = cli_width() > indent + 20 ? cli_width() - indent : 20, used = 0;
    while (*text != '\0') {
        size_t word = strcspn(text, " ");
        if (used > 0 && used + 1 + word > width) {
            printf("\n%*s", (int)indent, "");
            used = 0;
        }
        printf("%s%.*s", used > 0 ? " " : "", (int)word, text);
        used += (unsigned)word + (used > 0);
        text += word;
        text += strspn(text, " ");
    }
    putchar('\n');
}

static char *list_text(const json_t *list)
{
    char *text = NULL;
    size_t size = 0, i;
    json_t *member;
    FILE *out = open_memstream(&text, &size);
    if (out == NULL)
        return NULL;
    json_array_foreach((json_t *)(uintptr_t)list, i, member)
    {
        char *words = json_is_string(member) ? NULL : json_dumps(member, JSON_ENCODE_ANY);
        fprintf(out, "%s%s", i > 0 ? ", " : "", words != NULL ? words : json_string_value(member));
        free(words);
    }
    return fclose(out) == 0 ? text : NULL;
}

static void print_payload(struct skerry_bytes payload)
{
    char *text = NULL;
    const char *key;
    json_error_t problem;
    json_t *members = NULL, *member;
    if (payload.bytes != NULL && skerry_msgpack_to_json(payload, &text, NULL) == SKERRY_OK)
        members = json_loads(text, 0, &problem);
    json_object_foreach(members, key, member)
    {
        char *words = json_is_array(member) ? list_text(member)
                                            : json_dumps(member, JSON_ENCODE_ANY | JSON_COMPACT);
        const char *shown = json_is_string(member) ? json_string_value(member) : words;
        printf("      %-12s ", key);
        print_wrapped(shown == NULL ? "" : shown, 19);
        free(words);
    }
    json_decref(members);
    skerry_text_free(&text);
}

static void print_hits(const struct skerry_hits *hits)
{
    for (size_t q = 0; q < hits->query_count; q++) {
        if (hits->query_count > 1)
            printf("query %zu\n", q);
        for (size_t i = hits->starts[q]; i < hits->starts[q + 1]; i++) {
            char id[80];
            printf("%4zu  %8.4f  %s\n", i - hits->starts[q] + 1, (double)hits->hits[i].score,
                   cli_id_text(&hits->hits[i].id, id, sizeof id));
            print_payload(hits->hits[i].payload);
        }
    }
    if (hits->warning[0] != '\0')
        cli_note("warning: %s", hits->warning);
    if (hits->shards_answered < hits->shards_asked)
        cli_note("partial: %u of %u shards answered", hits->shards_answered, hits->shards_asked);
    cli_note("%zu %s, %s%s%s, %llu us in the node", hits->starts[hits->query_count],
             hits->starts[hits->query_count] == 1 ? "hit" : "hits",
             hits->exact ? "exact" : "approximate", hits->source[0] == '\0' ? "" : ", from ",
             hits->source, (unsigned long long)hits->took_us);
}

/* ---- search ---- */

static int submit_and_show(struct skerry *db, const struct skerry_search *request)
{
    struct skerry_error error = {0};
    struct skerry_reply *reply = NULL;
    struct skerry_hits *hits = NULL;
    uint64_t ticket = 0;
    if (skerry_search_submit(db, request, &ticket, &error) != SKERRY_OK)
        return cli_error(&error);
    while (reply == NULL)
        if (skerry_poll(db, 1000, &ticket, &reply, &error) != SKERRY_OK)
            return cli_error(&error);
    int status = CLI_DONE;
    if (skerry_reply_error(reply, &error) != SKERRY_OK)
        status = cli_error(&error);
    else if (cli_settings.json)
        status = cli_print_reply(reply);
    else if (skerry_reply_hits(&reply, &hits, &error) != SKERRY_OK)
        status = cli_error(&error);
    else
        print_hits(hits);
    skerry_hits_free(&hits);
    skerry_reply_free(&reply);
    return status;
}

enum { QUERIES_A_REQUEST = 256 };

static int search_file(struct skerry *db, struct skerry_search *request)
{
    int status = CLI_DONE;
    struct matrix *file = matrix_open(options.file, &status);
    if (file == NULL)
        return status;
    uint64_t rows = matrix_rows(file), first = options.row == UINT32_MAX ? 0 : options.row;
    uint64_t end = options.row == UINT32_MAX ? rows : first + 1;
    if (end > rows) {
        matrix_close(&file);
        return cli_usage("--row %u: the file has %llu rows, from 0", options.row,
                         (unsigned long long)rows);
    }
    uint32_t dim = matrix_dim(file);
    float *queries = malloc((size_t)QUERIES_A_REQUEST * dim * sizeof *queries);
    if (queries == NULL)
        status = cli_failed("no memory for the queries");
    request->dim = dim;
    request->vectors = queries;
    for (uint64_t row = first; status == CLI_DONE && row < end;) {
        size_t count = 0;
        const float *values = NULL;
        for (; count < QUERIES_A_REQUEST && row < end; count++, row++) {
            if ((values = matrix_row(file, row)) == NULL)
                break;
            memcpy(queries + count * dim, values, dim * sizeof *queries);
        }
        request->query_count = end - first == 1 ? 0 : count;
        status = values == NULL ? CLI_FAILED : submit_and_show(db, request);
    }
    free(queries);
    matrix_close(&file);
    return status;
}

enum { PAYLOAD_KEYS_MAX = 64 };

/* "a,b" in names (cut up) as a list. */
static size_t split_names(char *names, const char *keys[PAYLOAD_KEYS_MAX])
{
    char *rest = NULL;
    size_t count = 0;
    for (char *name = names == NULL ? NULL : strtok_r(names, ",", &rest);
         name != NULL && count < PAYLOAD_KEYS_MAX; name = strtok_r(NULL, ",", &rest))
        keys[count++] = name;
    return count;
}

static int search(int count, char **arguments)
{
    const char *keys[PAYLOAD_KEYS_MAX];
    struct skerry_id like;
    float threshold = (float)options.score_threshold;
    int status = CLI_DONE;
    const char *like_word = options.like != NULL ? options.like : options.id;
    (void)count;
    if ((like_word == NULL) == (options.file == NULL) ||
        (options.id != NULL && options.like != NULL))
        return cli_usage("what to search for? give one of --id ID, --like ID and --file Q.npy");
    if (like_word != NULL && !cli_id(like_word, &like))
        return cli_usage("'%s' is not an id", like_word);
    if (!cli_check_json("--filter", options.filter))
        return CLI_USAGE;
    if ((options.ef != 0) + (options.nprobe != 0) + (options.recall != 0) > 1)
        return cli_usage("give one of --ef, --nprobe and --recall");
    char *names = options.with_payload.value == NULL ? NULL : strdup(options.with_payload.value);
    struct skerry_search request = {
        .collection = arguments[0],
        .like = like_word == NULL ? NULL : &like,
        .vector_name = options.using,
        .limit = options.limit,
        .ef = options.ef,
        .nprobe = options.nprobe,
        .recall = options.recall,
        .filter = {.json = options.filter},
        .score_threshold = options.score_threshold > -1e299 ? &threshold : NULL,
        .with_payload = options.with_payload.is_given,
        .payload_keys = keys,
        .payload_key_count = split_names(names, keys),
        .with_vector = options.with_vector,
        .exact = options.exact,
        .deadline_ms = cli_settings.deadline_ms,
    };
    struct skerry *db = cli_connect(&status);
    if (db != NULL)
        status = like_word != NULL ? submit_and_show(db, &request) : search_file(db, &request);
    free(names);
    skerry_close(&db);
    return status;
}

const struct cli_command cli_search = {
    .name = "search",
    .arguments = "NAME",
    .arguments_min = 1,
    .arguments_max = 1,
    .summary = "Find the nearest records",
    .details = "Examples:\n"
               "  skerry search docs --like 26047602 --limit 5 --with-payload title,year\n"
               "  skerry search docs --file q.npy --filter "
               "'{\"must\":[{\"key\":\"pos\",\"match\":\"noun\"}]}'",
    .options = search_options,
    .run = search,
};

/* ---- get, delete, count ---- */

struct ids {
    uint64_t *numbers;
    const char **texts;
    struct skerry_ids ids;
};

static bool read_ids(struct ids *self, int count, char **words)
{
    self->numbers = calloc((size_t)count + 1, sizeof *self->numbers);
    self->texts = calloc((size_t)count + 1, sizeof *self->texts);
    if (self->numbers == NULL || self->texts == NULL) {
        (void)cli_failed("no memory for the ids");
        return false;
    }
    for (int i = 0; i < count; i++) {
        struct skerry_id id;
        if (!cli_id(words[i], &id)) {
            (void)cli_usage("'%s' is not an id: digits up to 18446744073709551615, or a text",
                            words[i]);
            return false;
        }
        self->numbers[i] = id.number;
        self->texts[i] = id.text;
    }
    self->ids = (struct skerry_ids){(size_t)count, self->numbers, self->texts};
    return true;
}

static void free_ids(struct ids *self)
{
    free(self->numbers);
    free(self->texts);
}

/* Frames are written here and not through JSON: ids of 2^63 and above would not pass it. */
static void begin(struct sk_frame *frame, const char *op, const char *collection)
{
    sk_frame_begin(frame, op);
    sk_frame_key(frame, "collection");
    sk_put_text(&frame->wire, collection);
}

static void put_ids(struct sk_frame *frame, const struct ids *ids)
{
    sk_frame_key(frame, "ids");
    sk_put_array(&frame->wire, ids->ids.count);
    for (size_t i = 0; i < ids->ids.count; i++) {
        if (ids->texts[i] != NULL)
            sk_put_text(&frame->wire, ids->texts[i]);
        else
            sk_put_u64(&frame->wire, ids->numbers[i]);
    }
}

/* The filter as typed. false: it said what is wrong. */
static bool put_filter(struct sk_frame *frame)
{
    struct skerry_error error = {0};
    struct skerry_bytes filter = {0};
    if (options.filter == NULL)
        return true;
    if (skerry_json_to_msgpack(options.filter, strlen(options.filter), &filter, &error) !=
        SKERRY_OK) {
        (void)cli_usage("--filter: %s", error.message);
        return false;
    }
    sk_frame_key(frame, "filter");
    sk_buffer_append(&frame->wire, filter.bytes, filter.size);
    skerry_bytes_free(&filter);
    return true;
}

/* With --json only the words about those that are missing: the reply is printed as it came. */
static int show_records(const struct skerry_records *records, const struct ids *asked)
{
    unsigned missing = 0;
    for (size_t i = 0; i < records->count; i++) {
        const struct skerry_record *record = &records->records[i];
        char id[80];
        if (!record->is_found) {
            struct skerry_id wanted = {asked->texts[i], asked->numbers[i]};
            cli_note("skerry: no record %s", cli_id_text(&wanted, id, sizeof id));
            missing++;
            continue;
        }
        if (cli_settings.json)
            continue;
        printf("%s\n", cli_id_text(&record->id, id, sizeof id));
        print_payload(record->payload);
        if (record->vector.bytes != NULL)
            printf("      %-12s %zu numbers (--json shows them)\n", "vector",
                   record->vector.size / sizeof(float));
    }
    return missing == 0 ? CLI_DONE : CLI_FAILED;
}

static int show_reply(struct skerry_reply **reply, const struct ids *ids)
{
    struct skerry_error error = {0};
    struct skerry_records *records = NULL;
    int status = cli_settings.json ? cli_print_reply(*reply) : CLI_DONE;
    if (status != CLI_DONE)
        return status;
    if (skerry_reply_records(reply, &records, &error) != SKERRY_OK)
        status = cli_error(&error);
    else if (records->count != ids->ids.count)
        status =
            cli_failed("the node answered %zu records for %zu ids", records->count, ids->ids.count);
    else
        status = show_records(records, ids);
    skerry_records_free(&records);
    return status;
}

static int get_records(struct skerry *db, const char *collection, const struct ids *ids)
{
    struct skerry_error error = {0};
    struct skerry_reply *reply = NULL;
    struct sk_frame frame;
    int status;
    begin(&frame, "get", collection);
    put_ids(&frame, ids);
    sk_frame_key(&frame, "with_payload");
    sk_put_bool(&frame.wire, true);
    sk_frame_key(&frame, "with_vector");
    sk_put_bool(&frame.wire, options.with_vector);
    if (sk_connection_call(db, &frame, cli_settings.deadline_ms, &reply, &error) != SKERRY_OK)
        status = cli_error(&error);
    else
        status = show_reply(&reply, ids);
    skerry_reply_free(&reply);
    return status;
}

static int get(int count, char **arguments)
{
    struct ids ids = {0};
    int status = CLI_USAGE;
    if (read_ids(&ids, count - 1, arguments + 1)) {
        struct skerry *db = cli_connect(&status);
        if (db != NULL)
            status = get_records(db, arguments[0], &ids);
        skerry_close(&db);
    }
    free_ids(&ids);
    return status;
}

const struct cli_command cli_get = {
    .name = "get",
    .arguments = "NAME ID ...",
    .arguments_min = 2,
    .arguments_max = CLI_ARGUMENTS_MAX,
    .summary = "Show records by their ids",
    .options = get_options,
    .run = get,
};

/* Sends the frame (taken) and prints the one number of its reply. */
static int print_number(struct sk_frame *frame, const char *name)
{
    struct skerry_error error = {0};
    struct skerry_reply *reply = NULL;
    uint64_t number = 0;
    int status = CLI_DONE;
    struct skerry *db = cli_connect(&status);
    if (db == NULL)
        sk_frame_deinit(frame);
    else if (sk_connection_call(db, frame, cli_settings.deadline_ms, &reply, &error) != SKERRY_OK)
        status = cli_error(&error);
    else if (cli_settings.json)
        status = cli_print_reply(reply);
    else if (!skerry_reply_u64(reply, name, &number))
        status = cli_failed("the reply has no number '%s'", name);
    else
        printf("%llu\n", (unsigned long long)number);
    if (reply != NULL && !cli_settings.json && sk_reply_member(reply, "warning").bytes != NULL) {
        struct sk_span warning = sk_reply_member(reply, "warning");
        char *text = NULL;
        if (skerry_msgpack_to_json((struct skerry_bytes){warning.bytes, warning.size}, &text,
                                   NULL) == SKERRY_OK)
            cli_note("warning: %s", text);
        skerry_text_free(&text);
    }
    skerry_reply_free(&reply);
    skerry_close(&db);
    return status;
}

static int delete_records(int count, char **arguments)
{
    struct ids ids = {0};
    struct sk_frame frame;
    if ((count > 1) == (options.filter != NULL))
        return cli_usage("what to delete? give ids, or --filter JSON");
    begin(&frame, "delete", arguments[0]);
    bool is_good = put_filter(&frame) && (count == 1 || read_ids(&ids, count - 1, arguments + 1));
    if (is_good && count > 1)
        put_ids(&frame, &ids);
    free_ids(&ids);
    if (is_good)
        return print_number(&frame, "deleted");
    sk_frame_deinit(&frame);
    return CLI_USAGE;
}

const struct cli_command cli_delete = {
    .name = "delete",
    .arguments = "NAME [ID ...]",
    .arguments_min = 1,
    .arguments_max = CLI_ARGUMENTS_MAX,
    .summary = "Delete records by their ids or by a filter; tells how many there were",
    .options = filter_options,
    .run = delete_records,
};

static int count_records(int count, char **arguments)
{
    struct sk_frame frame;
    (void)count;
    begin(&frame, "count", arguments[0]);
    if (put_filter(&frame))
        return print_number(&frame, "count");
    sk_frame_deinit(&frame);
    return CLI_USAGE;
}

const struct cli_command cli_count = {
    .name = "count",
    .arguments = "NAME",
    .arguments_min = 1,
    .arguments_max = 1,
    .summary = "Count records",
    .options = filter_options,
    .run = count_records,
};
