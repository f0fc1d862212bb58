/* Mounts, device nodes, the root's tree, and what masked and read-only paths let through. */

#define _GNU_SOURCE
#include "observer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

void observe_mounts(void) {
    static char line[16384];
    FILE *stream = fopen("/proc/self/mountinfo", "r");
    for (int number = 0; stream && fgets(line, sizeof line, stream); number++) {
        line[strcspn(line, "\n")] = 0;
        at("mountinfo.%d", number);
        is("%s", line);
    }
    if (stream)
        fclose(stream);
}

static void walk(const char *top, const char *path, dev_t device, int depth) {
    struct dirent **entries;
    int count = scandir(*path ? path : "/", &entries, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char *name = entries[i]->d_name;
        if (!strcmp(name, ".") || !strcmp(name, ".."))
            continue;
        char child[4096], key[4200];
        snprintf(child, sizeof child, "%s/%s", path, name);
        snprintf(key, sizeof key, "%s.%s", top, child);
        place(key, child);
        struct stat found;
        if (depth && !lstat(child, &found) && S_ISDIR(found.st_mode) && (!device || found.st_dev == device))
            walk(top, child, device, depth - 1);
        free(entries[i]);
    }
    if (count >= 0)
        free(entries);
}

void observe_tree(void) {
    struct stat root;
    place("tree./", "/");
    if (!stat("/", &root))
        walk("tree", "", root.st_dev, 6);
    walk("dev", "/dev", 0, 3);
    walk("cgroups", "/sys/fs/cgroup", 0, 0);
    walk("interfaces", "/sys/class/net", 0, 0);
}

static void contents(const char *path) {
    static char text[4096];
    struct stat found;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    at("path.read.%s", path);
    if (fd < 0) {
        is_errno(errno);
        return;
    }
    if (!fstat(fd, &found) && S_ISDIR(found.st_mode)) {
        struct dirent **entries;
        int count = scandir(path, &entries, NULL, alphasort);
        is("%s", count <= 2 ? "an empty directory" : "a directory with entries");
    } else {
        ssize_t length = read(fd, text, sizeof text);
        if (length < 0)
            is_errno(errno);
        else
            is("%s", length ? "contents" : "nothing");
    }
    close(fd);
}

void observe_paths(char **paths) {
    for (; *paths; paths++) {
        char key[512], inside[512];
        snprintf(key, sizeof key, "path.is.%s", *paths);
        place(key, *paths);
        contents(*paths);
        struct statvfs system;
        at("path.flags.%s", *paths);
        if (statvfs(*paths, &system))
            is_errno(errno);
        else
            is("%lx", system.f_flag);
        int fd = open(*paths, O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
        at("path.write.%s", *paths);
        is_errno(fd < 0 ? errno : 0);
        if (fd >= 0)
            close(fd);
        snprintf(inside, sizeof inside, "%s/observed", *paths);
        at("path.make.%s", *paths);
        int failed = mkdir(inside, 0700) ? errno : 0;
        is_errno(failed);
        if (!failed)
            rmdir(inside);
        at("path.remove.%s", *paths);
        is_errno(rmdir(*paths) ? errno : 0);
    }
}

void observe_devices(void) {
    static const struct {
        const char *name;
        mode_t kind;
        unsigned major, minor;
    } devices[] = {
        {"mem", S_IFCHR, 1, 1},     {"null", S_IFCHR, 1, 3},     {"zero", S_IFCHR, 1, 5},      {"full", S_IFCHR, 1, 7},
        {"random", S_IFCHR, 1, 8},  {"urandom", S_IFCHR, 1, 9},  {"kmsg", S_IFCHR, 1, 11},     {"tty0", S_IFCHR, 4, 0},
        {"tty", S_IFCHR, 5, 0},     {"console", S_IFCHR, 5, 1},  {"ptmx", S_IFCHR, 5, 2},      {"loop0", S_IFBLK, 7, 0},
        {"sda", S_IFBLK, 8, 0},     {"vda", S_IFBLK, 254, 0},    {"misc", S_IFCHR, 10, 61},    {"tun", S_IFCHR, 10, 200},
        {"fuse", S_IFCHR, 10, 229}, {"kvm", S_IFCHR, 10, 232},   {"loop", S_IFCHR, 10, 237},   {"pts", S_IFCHR, 136, 0},
    };
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        char path[64];
        snprintf(path, sizeof path, "/dev/observed-%s", devices[i].name);
        int failed = mknod(path, devices[i].kind | 0600, makedev(devices[i].major, devices[i].minor)) ? errno : 0;
        at("device.make.%s", devices[i].name);
        is_errno(failed);
        if (failed)
            continue;
        at("device.open.%s", devices[i].name);
        int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
        is_errno(fd < 0 ? errno : 0);
        if (fd >= 0)
            close(fd);
        unlink(path);
    }
}
