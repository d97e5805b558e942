"""Reads what record.c recorded and rebuilds the folder as a power cut could have left it.

The model of the disk: what was written before a sync of that file began is there once the sync has
ended; anything later may be there or not, sector by sector (512 bytes). A name made or changed is there
once its folder or the file itself was synced after it (as ext4, xfs and btrfs do); until then it may be.
"""

import os
import random
import struct

HEADER = struct.Struct("<IIQQII")
MAGIC = 0x534B5243
(CREATE, MKDIR, WRITE, TRUNCATE, RENAME, UNLINK, SYNC_BEGIN, SYNC_END, WRITE_SYNC, UNSEEN, MARK) = range(1, 12)
SECTOR = 512


def mark(log_path, text):
    """Puts a line of the ledger into the log, in order with what the processes write."""
    data = text.encode()
    fd = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, HEADER.pack(MAGIC, MARK, 0, 0, os.getpid(), len(data)) + data)
    os.close(fd)


def read_log(path):
    """[(kind, inode, offset, process, bytes)] in the order in which it happened."""
    with open(path, "rb") as file:
        data = file.read()
    at = 0
    records = []
    while at + HEADER.size <= len(data):
        magic, kind, inode, offset, process, size = HEADER.unpack_from(data, at)
        if magic != MAGIC:
            raise ValueError(f"{path}: byte {at}: not a record")
        at += HEADER.size
        records.append((kind, inode, offset, process, data[at:at + size]))
        at += size
    return records


class File:
    def __init__(self):
        self.durable = bytearray()
        self.pending = []       # (number, "write"/"truncate", offset, bytes)

    @staticmethod
    def write(image, offset, data):
        if len(image) < offset:
            image.extend(bytes(offset - len(image)))
        image[offset:offset + len(data)] = data

    @staticmethod
    def truncate(image, size):
        if size < len(image):
            del image[size:]
        else:
            image.extend(bytes(size - len(image)))

    def apply(self, image, change):
        _, what, offset, data = change
        if what == "write":
            self.write(image, offset, data)
        else:
            self.truncate(image, offset)

    def settle(self, before):
        for change in [c for c in self.pending if c[0] < before]:
            self.apply(self.durable, change)
        self.pending = [c for c in self.pending if c[0] >= before]


class Disk:
    """Plays the log forward; image() is the folder after a power cut at the point reached."""

    def __init__(self, root):
        self.root = os.path.realpath(root)
        self.current = {}               # inode -> (inode, when it was made): the inode of what follows
        self.files = {}                 # inode -> File
        self.folders = {}               # inode -> path, of folders
        self.names = {}                 # path -> inode, durable
        self.pending_names = []         # (number, kind, inode, path, to)
        self.sync_began = {}            # (process, inode) -> [numbers]
        self.number = 0
        self.syncs = 0
        self.unseen = []
        self.marks = []

    def play(self, record):
        kind, inode, offset, process, data = record
        self.number += 1
        if kind in (CREATE, MKDIR):     # the number of one that is gone may be given to another
            self.current[inode] = (inode, self.number)
        inode = self.current.get(inode, inode)
        if kind == CREATE:
            self.files[inode] = File()
            self.pending_names.append((self.number, "file", inode, data.decode(), None))
        elif kind == MKDIR:
            self.folders[inode] = data.decode()
            self.pending_names.append((self.number, "folder", inode, data.decode(), None))
        elif kind in (WRITE, WRITE_SYNC, TRUNCATE):
            file = self.files.get(inode)
            if file is None:
                raise ValueError(f"a write to inode {inode} whose making was not recorded")
            change = (self.number, "truncate" if kind == TRUNCATE else "write", offset, data)
            if kind == WRITE_SYNC:
                file.apply(file.durable, change)    # what else is pending stays pending
                self.syncs += 1
            else:
                file.pending.append(change)
        elif kind == RENAME:
            old, new = data.decode().split("\0")
            if inode in self.folders:
                self.folders[inode] = new
            self.pending_names.append((self.number, "rename", inode, old, new))
        elif kind == UNLINK:
            self.pending_names.append((self.number, "unlink", inode, data.decode(), None))
        elif kind == SYNC_BEGIN:
            self.sync_began.setdefault((process, inode), []).append(self.number)
        elif kind == SYNC_END:
            began = self.sync_began[(process, inode)].pop(0)
            self.syncs += 1
            if inode in self.files:
                self.files[inode].settle(began)
            self.settle_names(inode, began)
        elif kind == UNSEEN:
            self.unseen.append(data.decode().replace("\0", ": "))
        elif kind == MARK:
            self.marks.append(data.decode())

    def settle_names(self, inode, before):
        """A sync of a folder settles the names in it; a sync of a file settles its own and its folders'."""
        folder = self.folders.get(inode)
        if folder is None and inode not in self.files:
            folder = self.root      # the folder itself was there before the recording began
        own = {p[3] for p in self.pending_names if p[2] == inode} | \
              {p[4] for p in self.pending_names if p[2] == inode and p[4]}
        left = []
        for entry in self.pending_names:
            number, kind, of, path, to = entry
            is_settled = number < before and (
                of == inode or (folder is not None and os.path.dirname(to or path) == folder) or
                (kind == "folder" and any(name.startswith(path + "/") for name in own)))
            if is_settled:
                self.apply_name(self.names, entry)
            else:
                left.append(entry)
        self.pending_names = left

    @staticmethod
    def apply_name(names, entry):
        _, kind, inode, path, to = entry
        if kind in ("file", "folder"):
            names[path] = inode
        elif kind == "unlink":
            if names.get(path) == inode:
                del names[path]
        else:
            moved = {name: i for name, i in names.items() if name == path or name.startswith(path + "/")}
            for name, i in moved.items():
                del names[name]
                names[to + name[len(path):]] = i

    def image(self, target, rng):
        """Writes the folder after a cut here into target; returns how many later changes got through."""
        kept = 0
        share = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))   # how much of the rest had reached the disk
        names = dict(self.names)
        os.makedirs(target, mode=0o700, exist_ok=True)
        for entry in self.pending_names:        # the journal keeps names in order: a prefix survives
            if rng.random() >= max(share, 0.3):
                break
            self.apply_name(names, entry)
        for path in sorted(names):
            inode = names[path]
            place = os.path.join(target, os.path.relpath(path, self.root))
            if inode not in self.files:
                os.makedirs(place, mode=0o700, exist_ok=True)
                continue
            file = self.files[inode]
            content = bytearray(file.durable)
            for change in file.pending:
                number, what, offset, data = change
                if what == "truncate":
                    if rng.random() < share:
                        file.apply(content, change)
                        kept += 1
                    continue
                start = 0
                while start < len(data):
                    end = min(len(data), start + SECTOR - (offset + start) % SECTOR)
                    if rng.random() < share:
                        file.write(content, offset + start, data[start:end])
                        kept += 1
                    start = end
            os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
            with open(place, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as out:
                out.write(content)      # keys are refused when others may read them
        return kept


def cuts(records, count, rng):
    """Points of the log to cut at: most of them inside or just after a burst of writes."""
    busy = [i for i, r in enumerate(records) if r[0] in (WRITE, WRITE_SYNC, SYNC_BEGIN, SYNC_END, RENAME, MARK)]
    return sorted(rng.choice(busy) for _ in range(count))


__all__ = ["Disk", "cuts", "mark", "read_log", "random"]
