/* What belongs to the namespaces: names, network interfaces, sysctls, and limits of the cgroup. */

#define _GNU_SOURCE
#include "observer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

static void interfaces(void) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request;
    memset(&request, 0, sizeof request);
    strcpy(request.ifr_name, "lo");
    at("network.lo.flags");
    if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request))
        is_errno(errno);
    else
        is("%x", (unsigned short)request.ifr_flags);
    at("network.lo.address");
    if (fd < 0 || ioctl(fd, SIOCGIFADDR, &request))
        is_errno(errno);
    else
        is("%s", inet_ntoa(((struct sockaddr_in *)&request.ifr_addr)->sin_addr));
    if (fd >= 0)
        close(fd);
}

static void sysctls(void) {
    static const char *const names[] = {
        "kernel/hostname",     "kernel/domainname",     "kernel/msgmax",         "kernel/msgmni",
        "kernel/sem",          "kernel/shmall",         "kernel/shmmax",         "kernel/shmmni",
        "kernel/shm_rmid_forced", "kernel/core_pattern", "kernel/core_uses_pid", "kernel/dmesg_restrict",
        "kernel/kptr_restrict", "kernel/ns_last_pid",   "kernel/pid_max",        "kernel/panic",
        "kernel/modprobe",     "kernel/yama/ptrace_scope", "kernel/unprivileged_bpf_disabled", "fs/mqueue/msg_max",
        "fs/mqueue/queues_max", "fs/file-max",          "fs/protected_symlinks", "fs/suid_dumpable",
        "net/core/somaxconn",  "net/ipv4/ip_forward",   "net/ipv4/ip_local_port_range", "net/ipv4/ip_unprivileged_port_start",
        "net/ipv4/ping_group_range", "net/ipv6/conf/all/disable_ipv6", "user/max_user_namespaces", "vm/overcommit_memory",
        "vm/swappiness",       "vm/panic_on_oom",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char key[128], path[128];
        snprintf(key, sizeof key, "sysctl.%s", names[i]);
        snprintf(path, sizeof path, "/proc/sys/%s", names[i]);
        file(key, path);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        at("%s.write", key);
        is_errno(fd < 0 ? errno : 0);
        if (fd >= 0)
            close(fd);
    }
}

static void cgroup_files(void) {
    static const char *const files[] = {
        /* v1 */
        "devices/devices.list", "devices/cgroup.procs", "pids/pids.max", "memory/memory.limit_in_bytes",
        "memory/memory.soft_limit_in_bytes", "memory/memory.swappiness", "memory/memory.oom_control",
        "memory/memory.use_hierarchy", "cpu/cpu.shares", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us",
        "cpu/cpu.idle", "cpuset/cpuset.cpus", "cpuset/cpuset.mems", "freezer/freezer.state", "memory/memory.kmem.limit_in_bytes",
        /* v2 */
        "cgroup.type", "cgroup.controllers", "cgroup.subtree_control", "cgroup.freeze", "cgroup.max.depth", "pids.max",
        "memory.max", "memory.high", "memory.low", "memory.min", "memory.swap.max", "memory.oom.group", "cpu.max",
        "cpu.weight", "cpu.idle", "cpuset.cpus", "cpuset.mems", "cpuset.cpus.partition", "io.weight", "hugetlb.2MB.max",
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char key[160], path[160];
        snprintf(key, sizeof key, "cgroup.%s", files[i]);
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s", files[i]);
        file(key, path);
    }
    static const char *const places[] = {"cgroup.procs", "devices/cgroup.procs", "memory/cgroup.procs", "devices/devices.allow"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char path[160];
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s", places[i]);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        at("cgroup.write.%s", places[i]);
        is_errno(fd < 0 ? errno : 0);
        if (fd >= 0)
            close(fd);
    }
}

void observe_kernel(void) {
    struct utsname names;
    uname(&names);
    at("uts.hostname");
    is("%s", names.nodename);
    at("uts.domainname");
    is("%s", names.domainname);
    at("uts.machine");
    is("%s", names.machine);
    interfaces();
    file("network.routes", "/proc/net/route");
    file("network.devices", "/proc/net/if_inet6");
    sysctls();
    cgroup_files();
    struct timespec boot, monotonic;
    clock_gettime(CLOCK_BOOTTIME, &boot);
    clock_gettime(CLOCK_MONOTONIC, &monotonic);
    at("time.boot_is_after_monotonic");
    is("%ld", (long)(boot.tv_sec - monotonic.tv_sec));
}
