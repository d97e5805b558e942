/* How far an import came: rows from the beginning that are acknowledged, of which file, node and
 * collection. */
#include "tools/skerry/import.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static json_t *file_identity(const char *path)
{
    struct stat status;
    char whole[PATH_MAX];
    if (path == NULL || stat(path, &status) != 0)
        return json_null();
    const char *shown = realpath(path, whole) == NULL ? path : whole;
    return json_pack("{s:s,s:I,s:I,s:I}", "path", shown, "size", (json_int_t)status.st_size,
                     "modified_ns",
                     (json_int_t)(status.st_mtim.tv_sec * 1000000000LL + status.st_mtim.tv_nsec),
                     "inode", (json_int_t)status.st_ino);
}

/* What a remembered position belongs to; a dropped and newly made collection has another uuid. */
json_t *import_identity(const struct importer *self, const json_t *description)
{
    json_t *uuid = json_object_get(description, "uuid");
    return json_pack("{s:s,s:s,s:o,s:o,s:o,s:o}", "node", skerry_node_key(self->db), "collection",
                     self->collection, "uuid", uuid == NULL ? json_null() : json_incref(uuid),
                     "file", file_identity(self->path), "ids", file_identity(import_options.ids),
                     "payload", file_identity(import_options.payload));
}

static uint32_t hash_text(const char *text)
{
    uint32_t hash = 2166136261U; /* FNV-1a: a name for a file, no more */
    for (; *text != '\0'; text++)
        hash = (hash ^ (uint8_t)*text) * 16777619U;
    return hash;
}

void import_choose_state_path(struct importer *self)
{
    const char *base = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char folder[PATH_MAX - 64], named[PATH_MAX], whole[PATH_MAX];
    if (import_options.state != NULL) {
        snprintf(self->state_path, sizeof self->state_path, "%s", import_options.state);
        return;
    }
    if ((base == NULL || base[0] == '\0') && home == NULL)
        return;
    if (base != NULL && base[0] != '\0')
        snprintf(folder, sizeof folder, "%s/skerry", base);
    else
        snprintf(folder, sizeof folder, "%s/.local/state/skerry", home);
    for (char *c = folder + 1; *c != '\0'; c++)
        if (*c == '/') {
            *c = '\0';
            (void)mkdir(folder, 0755);
            *c = '/';
        }
    (void)mkdir(folder, 0700);
    const char *path = realpath(self->path, whole) == NULL ? self->path : whole;
    snprintf(named, sizeof named, "%.1500s %.100s %.2000s", skerry_node_key(self->db),
             self->collection, path);
    snprintf(self->state_path, sizeof self->state_path, "%s/import-%08x.json", folder,
             hash_text(named));
}

uint64_t import_load_state(struct importer *self)
{
    json_error_t problem;
    json_t *state =
        self->state_path[0] == '\0' ? NULL : json_load_file(self->state_path, 0, &problem);
    uint64_t rows = 0;
    if (state == NULL)
        return 0;
    if (json_equal(json_object_get(state, "identity"), self->identity) == 0)
        cli_note(
            "skerry: the import of this file that was left off was of another state of the file or "
            "collection: beginning again");
    else if (!import_options.restart)
        rows = (uint64_t)json_integer_value(json_object_get(state, "rows"));
    json_decref(state);
    return rows;
}

/* All rows before this one are acknowledged. */
static uint64_t acknowledged_to(const struct importer *self)
{
    uint64_t row = self->row;
    for (unsigned i = 0; i < self->window; i++)
        if (self->batches[i].is_used && self->batches[i].first_row < row)
            row = self->batches[i].first_row;
    return row;
}

void import_save_state(struct importer *self)
{
    char path[PATH_MAX + 8];
    if (self->state_path[0] == '\0')
        return;
    snprintf(path, sizeof path, "%s.new", self->state_path);
    json_t *state = json_pack("{s:O,s:I}", "identity", self->identity, "rows",
                              (json_int_t)acknowledged_to(self));
    if (state == NULL || json_dump_file(state, path, JSON_COMPACT) != 0 ||
        rename(path, self->state_path) != 0) {
        cli_note("skerry: cannot remember how far the import came in '%s': %s", self->state_path,
                 strerror(errno));
        self->state_path[0] = '\0';
    }
    json_decref(state);
    self->saved_s = cli_now_s();
}
