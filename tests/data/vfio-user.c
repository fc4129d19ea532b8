// What a VMM does with a VF, and nothing else: opens it, maps memory for DMA, and waits.
//
//   vfio-user hold GROUP DEVICE          open the nodes itself (as root)
//   vfio-user fds CONTAINER GROUP DEVICE use descriptors that were inherited
//   vfio-user lease SOCKET POOL OWNER    ask for a lease as nobody, use what it is handed
//   vfio-user ask SOCKET POOL OWNER      ask, and end before the answer
//   vfio-user idle                       be nobody, and wait for a signal
//   vfio-user iommufd IOMMUFD DEVICE-FD DEVICE
//                                        use descriptors that were inherited, by iommufd
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

static void wait_with(void *memory, const char *name, int device)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };

	if (ioctl(device, VFIO_DEVICE_GET_INFO, &info) < 0)
		die("VFIO_DEVICE_GET_INFO");
	printf("using %s as %d: %u regions, %u interrupts\n", name, (int)geteuid(),
	       info.num_regions, info.num_irqs);
	fflush(stdout);
	while (read(0, memory, MAPPED) > 0)
		;
}

static void use(int container, int group, const char *name)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
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
	wait_with(memory, name, device);
}

// Of linux/vfio.h and linux/iommufd.h, which are younger than some systems' headers.
struct bind_iommufd {
	__u32 argsz, flags;
	__s32 iommufd;
	__u32 out_devid;
};
struct attach_iommufd {
	__u32 argsz, flags, pt_id;
};
struct ioas_alloc {
	__u32 size, flags, out_ioas_id;
};
struct ioas_map {
	__u32 size, flags, ioas_id, reserved;
	__u64 user_va, length, iova;
};
#define BIND_IOMMUFD _IO(VFIO_TYPE, VFIO_BASE + 18)
#define ATTACH_IOMMUFD _IO(VFIO_TYPE, VFIO_BASE + 19)
#define IOAS_ALLOC _IO(';', 0x81)
#define IOAS_MAP _IO(';', 0x85)
#define IOAS_MAP_FLAGS 7 // at this address, writable, readable

static void use_iommufd(int iommufd, int device, const char *name)
{
	struct bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = iommufd };
	struct ioas_alloc ioas = { .size = sizeof(ioas) };
	struct attach_iommufd attach = { .argsz = sizeof(attach) };
	struct ioas_map map = { .size = sizeof(map), .flags = IOAS_MAP_FLAGS, .length = MAPPED };
	void *memory;

	if (ioctl(device, BIND_IOMMUFD, &bind) < 0)
		die("VFIO_DEVICE_BIND_IOMMUFD");
	if (ioctl(iommufd, IOAS_ALLOC, &ioas) < 0)
		die("IOMMU_IOAS_ALLOC");
	attach.pt_id = ioas.out_ioas_id;
	if (ioctl(device, ATTACH_IOMMUFD, &attach) < 0)
		die("VFIO_DEVICE_ATTACH_IOMMUFD_PT");
	memory = mmap(NULL, MAPPED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	map.ioas_id = ioas.out_ioas_id;
	map.user_va = (unsigned long)memory;
	if (ioctl(iommufd, IOAS_MAP, &map) < 0)
		die("IOMMU_IOAS_MAP");
	wait_with(memory, name, device);
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

static void become_nobody(void)
{
	if (setgroups(0, NULL) || setgid(NOBODY) || setuid(NOBODY))
		die("setuid");
}

static void lease(const char *path, const char *pool, const char *owner, int waits)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char text[4096], name[64], control[CMSG_SPACE(2 * sizeof(int))];
	struct iovec part = { text, sizeof(text) - 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1,
				  .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *header;
	ssize_t length;
	int fds[2], s;

	become_nobody();
	s = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (s < 0 || connect(s, (struct sockaddr *)&address, sizeof(address)))
		die("connect");
	length = snprintf(text, sizeof(text), "{\"pool\":\"%s\",\"owner\":\"%s\"}\n", pool, owner);
	if (write(s, text, length) != length)
		die("write");
	if (!waits) {
		usleep(300000); // long enough to be known, too short to be served
		exit(0);
	}
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
	if (strstr(text, "\"iommufd\""))
		use_iommufd(fds[0], fds[1], name);
	else
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
		lease(argv[2], argv[3], argv[4], 1);
	} else if (argc == 5 && !strcmp(argv[1], "ask")) {
		lease(argv[2], argv[3], argv[4], 0);
	} else if (argc == 2 && !strcmp(argv[1], "idle")) {
		become_nobody();
		pause();
	} else if (argc == 5 && !strcmp(argv[1], "iommufd")) {
		use_iommufd(atoi(argv[2]), atoi(argv[3]), argv[4]);
	} else {
		return 64;
	}
	return 0;
}
