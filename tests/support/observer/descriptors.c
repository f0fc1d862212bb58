/* Open descriptors, and the terminal when they are one. */

#define _GNU_SOURCE
#include "observer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

void observe_terminal(void) {
    struct winsize size;
    struct termios mode;
    at("terminal.size");
    if (ioctl(0, TIOCGWINSZ, &size)) {
        is_errno(errno);
        return;
    }
    is("%ux%u", size.ws_col, size.ws_row);
    at("terminal.name");
    char *name = ttyname(0);
    is("%s", name ? name : strerrorname_np(errno));
    if (!tcgetattr(0, &mode)) {
        at("terminal.modes");
        is("i=%o o=%o c=%o l=%o", mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag);
    }
    at("terminal.session");
    is("%s", tcgetsid(0) == getpid() ? "self" : "other");
    at("terminal.foreground");
    is("%s", tcgetpgrp(0) == getpid() ? "self" : "other");
}

void observe_descriptors(void) {
    DIR *directory = opendir("/proc/self/fd");
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        int fd = atoi(entry->d_name);
        if (entry->d_name[0] == '.' || fd == dirfd(directory))
            continue;
        char path[64], target[4096];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(path, target, sizeof target - 1);
        target[length < 0 ? 0 : length] = 0;
        at("descriptor.%d.target", fd);
        is("%s", target);
        at("descriptor.%d.flags", fd);
        is("%o %o", fcntl(fd, F_GETFD), fcntl(fd, F_GETFL) & ~0100000 /* O_LARGEFILE */);
        struct stat found;
        if (fstat(fd, &found))
            continue;
        at("descriptor.%d.owner", fd);
        is("%o %u:%u", found.st_mode, found.st_uid, found.st_gid);
        int again = open(path, (fcntl(fd, F_GETFL) & O_ACCMODE) | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
        at("descriptor.%d.reopen", fd);
        is_errno(again < 0 ? errno : 0);
        if (again >= 0)
            close(again);
    }
    if (directory)
        closedir(directory);
}
