/* Says everything, then "end", then waits to be killed, so that the process can be looked at from outside as well.
 *
 * Runs where /observed exists and nowhere else: it tries system calls that no host should see tried. */

#define _GNU_SOURCE
#include "observer.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static char key[512];

void at(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(key, sizeof key, format, arguments);
    va_end(arguments);
}

void is(const char *format, ...) {
    static char value[16384];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(value, sizeof value, format, arguments);
    va_end(arguments);
    printf("%s\t", key);
    for (unsigned char *byte = (unsigned char *)value; *byte; byte++)
        if (*byte < ' ' || *byte == '\\' || *byte > '~')
            printf("\\%03o", *byte);
        else
            putchar(*byte);
    putchar('\n');
}

void is_errno(int number) {
    const char *name = number ? strerrorname_np(number) : "ok";
    if (name)
        is("%s", name);
    else
        is("errno %d", number);
}

void file(const char *name, const char *path) {
    char line[4096];
    FILE *stream = fopen(path, "r");
    at("%s", name);
    if (!stream) {
        is_errno(errno);
        return;
    }
    for (int number = 0; fgets(line, sizeof line, stream); number++) {
        line[strcspn(line, "\n")] = 0;
        at("%s.%d", name, number);
        is("%s", line);
    }
    fclose(stream);
}

void place(const char *name, const char *path) {
    struct stat found;
    char target[4096] = "";
    at("%s", name);
    if (lstat(path, &found)) {
        is_errno(errno);
        return;
    }
    const char *kind = S_ISREG(found.st_mode)   ? "file"
                       : S_ISDIR(found.st_mode) ? "directory"
                       : S_ISLNK(found.st_mode) ? "link"
                       : S_ISCHR(found.st_mode) ? "character"
                       : S_ISBLK(found.st_mode) ? "block"
                       : S_ISFIFO(found.st_mode) ? "pipe"
                                                 : "socket";
    if (S_ISCHR(found.st_mode) || S_ISBLK(found.st_mode))
        snprintf(target, sizeof target, " %u:%u", major(found.st_rdev), minor(found.st_rdev));
    else if (S_ISLNK(found.st_mode)) {
        strcpy(target, " to ");
        ssize_t length = readlink(path, target + 4, sizeof target - 5);
        target[length < 0 ? 4 : 4 + length] = 0;
    }
    is("%s %o %u:%u%s", kind, found.st_mode & 07777, found.st_uid, found.st_gid, target);
}

static void observe_image(int count, char **arguments, char **environment) {
    at("argv.count");
    is("%d", count);
    for (int i = 0; i < count; i++) {
        at("argv.%d", i);
        is("%s", arguments[i]);
    }
    for (int i = 0; environment[i]; i++) {
        at("environ.%d", i);
        is("%s", environment[i]);
    }
    static const struct {
        const char *name;
        unsigned long type;
    } vector[] = {{"secure", AT_SECURE}, {"uid", AT_UID}, {"euid", AT_EUID}, {"gid", AT_GID}, {"egid", AT_EGID}};
    for (size_t i = 0; i < sizeof vector / sizeof *vector; i++) {
        at("auxv.%s", vector[i].name);
        is("%lu", getauxval(vector[i].type));
    }
    at("auxv.execfn");
    is("%s", (const char *)getauxval(AT_EXECFN));
}

int main(int count, char **arguments, char **environment) {
    if (access("/observed", F_OK)) {
        fputs("this is no container made to be observed\n", stderr);
        return 2;
    }
    static char buffer[1 << 16];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    observe_descriptors(); /* before anything is opened */
    observe_image(count, arguments, environment);
    observe_credentials();
    observe_process();
    observe_mounts();
    observe_tree();
    observe_paths(arguments + 1);
    observe_kernel();
    observe_devices();
    fflush(stdout); /* children that inherit a filled buffer would write it again */
    observe_calls();
    observe_terminal(); /* last: crun tells it its size when the process is long running */
    at("end");
    is("1");
    fflush(stdout);
    for (;;)
        pause();
}
