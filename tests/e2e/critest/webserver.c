/* A web server in the place of nginx and httpd: serves one page on a port, under the name it is started by.
 *
 * Usage: /PATH/NAME PORT. Says its name on standard output, writes /var/run/NAME.pid, and its command line reads
 * "NAME: master process", which is how the suite tells it from other processes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char page[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\nConnection: close\r\n\r\nserved";

static void leave(int signal_number)
{
    (void)signal_number;
    _exit(0);
}

static int listening(int port)
{
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_ANY_INIT};
    struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    int yes = 1;
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        if (bind(fd, (struct sockaddr *)&any, sizeof any) == 0 && listen(fd, 64) == 0)
            return fd;
        close(fd);
    }
    fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(fd, (struct sockaddr *)&any4, sizeof any4) != 0 || listen(fd, 64) != 0) {
        perror("listen");
        exit(1);
    }
    return fd;
}

static void serve_one(int fd)
{
    char request[4096];
    if (read(fd, request, sizeof request) > 0 && write(fd, page, sizeof page - 1) < 0)
        perror("write");
    /* a close with unread bytes would reset the connection before the page is read */
    shutdown(fd, SHUT_WR);
    while (read(fd, request, sizeof request) > 0)
        ;
    close(fd);
}

int main(int argc, char **argv)
{
    char title[64], path[64];
    const char *name = program_invocation_short_name;
    if (argc == 2) {
        snprintf(title, sizeof title, "%s: master process", name);
        execl(argv[0], title, name, argv[1], NULL); /* by its path: the kernel's name of the process comes from it */
        perror("execl");
        return 1;
    }
    signal(SIGTERM, leave);
    signal(SIGINT, leave);
    signal(SIGCHLD, SIG_IGN);
    int fd = listening(atoi(argv[2]));
    snprintf(path, sizeof path, "/var/run/%s.pid", argv[1]);
    FILE *file = fopen(path, "w");
    if (file != NULL) {
        fprintf(file, "%d\n", getpid());
        fclose(file);
    }
    printf("%s serves port %s\n", argv[1], argv[2]);
    fflush(stdout);
    for (;;) {
        int connection = accept(fd, NULL, NULL);
        if (connection >= 0 && fork() == 0) {
            serve_one(connection);
            return 0;
        }
        if (connection >= 0)
            close(connection);
    }
}
