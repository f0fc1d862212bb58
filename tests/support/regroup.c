/* A set-group-id program of a hostile image: it runs with another primary group, and reads a file that denies the old. */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    char text[64];
    (void)argc;
    int fd = open(argv[1], O_RDONLY);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    printf("gid %d: %s\n", (int)getegid(), length < 0 ? strerror(errno) : "read");
    return 0;
}
