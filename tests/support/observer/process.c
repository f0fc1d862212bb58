/* What the kernel keeps about the process itself. */

#define _GNU_SOURCE
#include "observer.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static void status(void) {
    char line[4096];
    FILE *stream = fopen("/proc/self/status", "r");
    while (stream && fgets(line, sizeof line, stream)) {
        char *value = strchr(line, ':');
        if (!value)
            continue;
        *value++ = 0;
        while (isspace((unsigned char)*value))
            value++;
        value[strcspn(value, "\n")] = 0;
        at("status.%s", line);
        is("%s", value);
    }
    if (stream)
        fclose(stream);
}

static void prctls(void) {
    static const struct {
        const char *name;
        int option;
        unsigned long argument;
    } plain[] = {
        {"dumpable", PR_GET_DUMPABLE, 0},
        {"keepcaps", PR_GET_KEEPCAPS, 0},
        {"timer_slack", PR_GET_TIMERSLACK, 0},
        {"securebits", PR_GET_SECUREBITS, 0},
        {"no_new_privs", PR_GET_NO_NEW_PRIVS, 0},
        {"thp_disable", PR_GET_THP_DISABLE, 0},
        {"mce_kill", PR_MCE_KILL_GET, 0},
        {"timing", PR_GET_TIMING, 0},
        {"io_flusher", PR_GET_IO_FLUSHER, 0},
        {"store_bypass", PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS},
        {"indirect_branch", PR_GET_SPECULATION_CTRL, PR_SPEC_INDIRECT_BRANCH},
    };
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        int result = prctl(plain[i].option, plain[i].argument, 0, 0, 0);
        at("prctl.%s", plain[i].name);
        if (result < 0)
            is_errno(errno);
        else
            is("%d", result);
    }
    int value = -1;
    at("prctl.pdeathsig");
    is("%d", prctl(PR_GET_PDEATHSIG, &value) ? -1 : value);
    at("prctl.subreaper");
    is("%d", prctl(PR_GET_CHILD_SUBREAPER, &value) ? -1 : value);
    at("prctl.tsc");
    is("%d", prctl(PR_GET_TSC, &value) ? -1 : value);
}

static void limits(void) {
    static const char *const names[] = {"cpu",    "fsize",   "data",  "stack",      "core",     "rss",  "nproc",  "nofile",
                                        "memlock", "as",     "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"};
    for (int kind = 0; kind < 16; kind++) {
        struct rlimit limit = {0, 0};
        getrlimit(kind, &limit);
        at("limits.%s", names[kind]);
        is("%lld %lld", (long long)limit.rlim_cur, (long long)limit.rlim_max);
    }
}

static void scheduling(void) {
    struct {
        unsigned size, policy;
        unsigned long long flags;
        int nice;
        unsigned priority;
        unsigned long long runtime, deadline, period;
        unsigned util_min, util_max;
    } attributes = {0};
    at("scheduler.attributes");
    if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0))
        is_errno(errno);
    else
        is("policy=%u flags=%llu nice=%d priority=%u runtime=%llu deadline=%llu period=%llu util=%u..%u",
           attributes.policy, attributes.flags, attributes.nice, attributes.priority,
           attributes.policy == 6 ? attributes.runtime : 0, attributes.deadline, attributes.period, attributes.util_min,
           attributes.util_max);
    at("scheduler.policy");
    is("%d", sched_getscheduler(0));
    at("scheduler.nice");
    is("%d", getpriority(PRIO_PROCESS, 0));
    at("scheduler.io_priority");
    is("%ld", syscall(SYS_ioprio_get, 1, 0));
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    sched_getaffinity(0, sizeof cpus, &cpus);
    at("scheduler.cpus");
    is("%d of %ld", CPU_COUNT(&cpus), sysconf(_SC_NPROCESSORS_CONF));
    int mode = -1;
    at("memory_policy");
    if (syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0))
        is_errno(errno);
    else
        is("%d", mode);
    at("personality");
    int persona = personality(0xffffffff);
    if (persona < 0)
        is_errno(errno);
    else
        is("%x", persona);
}

static void session(void) {
    char text[1024] = "";
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    if (read(fd, text, sizeof text - 1) < 0)
        text[0] = 0;
    close(fd);
    int parent = -1, group = -1, leader = -1, terminal = -1, foreground = -1;
    char *rest = strrchr(text, ')');
    if (rest)
        sscanf(rest + 2, "%*c %d %d %d %d %d", &parent, &group, &leader, &terminal, &foreground);
    at("session.parent");
    is("%d", parent);
    at("session.leader");
    is("%s", leader == getpid() ? "self" : "other");
    at("session.group");
    is("%s", group == getpid() ? "self" : "other");
    at("session.foreground");
    is("%s", foreground == getpid() ? "self" : foreground == -1 ? "none" : "other");
    at("session.terminal");
    is("%d", terminal);
    int tty = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
    at("session.dev_tty");
    is_errno(tty < 0 ? errno : 0);
    if (tty >= 0)
        close(tty);
    at("process.pid");
    is("%s", getpid() == 1 ? "1" : "other");
    struct itimerval timer;
    for (int which = 0; which < 3; which++) {
        getitimer(which, &timer);
        at("timer.%d", which);
        is("%ld", timer.it_value.tv_sec * 1000000 + timer.it_value.tv_usec);
    }
    stack_t stack;
    sigaltstack(NULL, &stack);
    at("signal.stack");
    is("%d", stack.ss_flags);
}

static void keyring(void) {
    static char text[512];
    long serial = syscall(SYS_keyctl, 0 /* GET_KEYRING_ID */, -3 /* session */, 0);
    at("keyring.session");
    if (serial < 0) {
        is_errno(errno);
        return;
    }
    long length = syscall(SYS_keyctl, 6 /* DESCRIBE */, serial, text, sizeof text - 1);
    if (length < 0)
        is_errno(errno);
    else
        is("%s", text);
    /* the first process of a container leaves a key, which a further one finds when it has the same keyring */
    at("keyring.shared");
    long found = syscall(SYS_keyctl, 10 /* SEARCH */, serial, "user", "observed", 0);
    is_errno(found < 0 ? errno : 0);
    if (getpid() == 1)
        syscall(SYS_add_key, "user", "observed", "1", 1, serial);
}

static int is_number(const struct dirent *entry) { return isdigit((unsigned char)entry->d_name[0]); }

static void processes(void) {
    struct dirent **entries;
    int count = scandir("/proc", &entries, is_number, versionsort);
    at("processes.count");
    is("%d", count);
    place("processes.first.directory", "/proc/1");
    file("processes.first.name", "/proc/1/comm");
    char target[4096];
    static const char *const links[] = {"exe", "root", "cwd", "ns/pid"};
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/1/%s", links[i]);
        ssize_t length = readlink(path, target, sizeof target - 1);
        at("processes.first.%s", links[i]);
        if (length < 0) {
            is_errno(errno);
            continue;
        }
        target[length] = 0;
        is("%s", i == 3 ? "readable" : target);
    }
}

void observe_credentials(void) {
    mode_t mask = umask(0);
    umask(mask);
    at("umask");
    is("%03o", mask);
    status();
    limits();
    uid_t uid[3];
    gid_t gid[3], groups[64];
    getresuid(uid, uid + 1, uid + 2);
    getresgid(gid, gid + 1, gid + 2);
    at("credentials.uid");
    is("%u %u %u", uid[0], uid[1], uid[2]);
    at("credentials.gid");
    is("%u %u %u", gid[0], gid[1], gid[2]);
    int count = getgroups(64, groups);
    at("credentials.groups");
    char text[1024] = "";
    for (int i = 0; i < count; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%u ", groups[i]);
    is("%s", text);
    static const char *const files[] = {
        "uid_map",     "gid_map",          "setgroups",       "projid_map",      "loginuid", "sessionid",
        "oom_adj",     "oom_score_adj",    "coredump_filter", "timens_offsets",  "cgroup",   "attr/current",
        "attr/exec",   "attr/keycreate",   "personality",     "comm",            "timerslack_ns",   "attr/apparmor/current",
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char key[64], path[64];
        snprintf(key, sizeof key, "self.%s", files[i]);
        snprintf(path, sizeof path, "/proc/self/%s", files[i]);
        file(key, path);
    }
}

void observe_process(void) {
    char text[4096];
    at("process.cwd");
    is("%s", getcwd(text, sizeof text) ? text : strerrorname_np(errno));
    static const char *const links[] = {"exe", "root", "cwd"};
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/%s", links[i]);
        ssize_t length = readlink(path, text, sizeof text - 1);
        at("process.%s_link", links[i]);
        text[length < 0 ? 0 : length] = 0;
        is("%s", text);
    }
    prctls();
    scheduling();
    session();
    keyring();
    processes();
}
