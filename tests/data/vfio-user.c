// What a VMM does with a VF, and nothing else: opens it, maps memory for DMA, and waits.
//
//   vfio-user hold GROUP DEVICE          open the nodes itself (as root)
//   vfio-user fds CONTAINER GROUP DEVICE use descriptors that were inherited
//   vfio-user lease SOCKET POOL OWNER    ask for a lease as nobody, use what it is handed
//
// Prints "using DEVICE" once DMA is mapped; then waits until standard input ends or a signal comes.

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define NOBODY 65534
#define MAPPED (1 << 20)

static void die(const char *what)
{
	printf("failed: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void use(int container, int group, const char *name)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	struct vfio_device_info info = { .argsz = sizeof(info) };
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map) };
	void *memory;
	int device;

	if (ioctl(group, VFIO_GROUP_GET_STATUS, &status) < 0)
		die("VFIO_GROUP_GET_STATUS");
	if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE)) {
		errno = EPERM;
		die("the group is not viable");
	}
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) < 0)
		die("VFIO_GROUP_SET_CONTAINER");
	if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) < 0)
		die("VFIO_SET_IOMMU");
	memory = mmap(NULL, MAPPED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	map.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
	map.vaddr = (unsigned long)memory;
	map.iova = 0;
	map.size = MAPPED;
	if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map) < 0)
		die("VFIO_IOMMU_MAP_DMA");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name);
	if (device < 0)
		die("VFIO_GROUP_GET_DEVICE_FD");
	if (ioctl(device, VFIO_DEVICE_GET_INFO, &info) < 0)
		die("VFIO_DEVICE_GET_INFO");
	printf("using %s as %d: %u regions, %u interrupts\n", name, (int)geteuid(),
	       info.num_regions, info.num_irqs);
	fflush(stdout);
	while (read(0, memory, MAPPED) > 0)
		;
}

// The value of "key": "value" in JSON of one line.
static void value(const char *json, const char *key, char *out, size_t room)
{
	char needle[64];
	const char *at, *end;

	snprintf(needle, sizeof(needle), "\"%s\":\"", key);
	at = strstr(json, needle);
	if (!at) {
		printf("refused: %s\n", json);
		exit(2);
	}
	at += strlen(needle);
	end = strchr(at, '"');
	snprintf(out, room, "%.*s", (int)(end - at), at);
}

static void lease(const char *path, const char *pool, const char *owner)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char text[4096], name[64], control[CMSG_SPACE(2 * sizeof(int))];
	struct iovec part = { text, sizeof(text) - 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1,
				  .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *header;
	ssize_t length;
	int fds[2], s;

	if (setgroups(0, NULL) || setgid(NOBODY) || setuid(NOBODY))
		die("setuid");
	s = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (s < 0 || connect(s, (struct sockaddr *)&address, sizeof(address)))
		die("connect");
	length = snprintf(text, sizeof(text), "{\"pool\":\"%s\",\"owner\":\"%s\"}\n", pool, owner);
	if (write(s, text, length) != length)
		die("write");
	length = recvmsg(s, &message, MSG_CMSG_CLOEXEC);
	if (length <= 0)
		die("recvmsg");
	text[length] = 0;
	header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_type != SCM_RIGHTS ||
	    header->cmsg_len != CMSG_LEN(2 * sizeof(int))) {
		printf("refused: %s\n", text);
		exit(2);
	}
	memcpy(fds, CMSG_DATA(header), sizeof(fds));
	value(text, "address", name, sizeof(name));
	use(fds[0], fds[1], name);
}

int main(int argc, char **argv)
{
	char path[64];
	int container, group;

	if (argc == 4 && !strcmp(argv[1], "hold")) {
		snprintf(path, sizeof(path), "/dev/vfio/%s", argv[2]);
		container = open("/dev/vfio/vfio", O_RDWR);
		group = open(path, O_RDWR);
		if (container < 0 || group < 0)
			die("open");
		use(container, group, argv[3]);
	} else if (argc == 5 && !strcmp(argv[1], "fds")) {
		use(atoi(argv[2]), atoi(argv[3]), argv[4]);
	} else if (argc == 5 && !strcmp(argv[1], "lease")) {
		lease(argv[2], argv[3], argv[4]);
	} else {
		return 64;
	}
	return 0;
}
