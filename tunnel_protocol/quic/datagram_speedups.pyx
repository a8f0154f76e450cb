# cython: cdivision=True
"""`datagrams.py` for Linux: many datagrams with one system call, and no address made twice for one peer.

The interpreter lock is kept: no call here ever waits.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EADDRNOTAVAIL, EAFNOSUPPORT, EAGAIN, EINTR, EINVAL, ENETUNREACH, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <netinet/udp.h>
    #include <sys/socket.h>
    #ifndef SOL_UDP
    #define SOL_UDP 17
    #endif
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    #ifndef IP_PKTINFO
    #define IP_PKTINFO 8
    #endif
    #ifndef IPV6_RECVPKTINFO
    #define IPV6_RECVPKTINFO 49
    #endif
    #ifndef IPV6_PKTINFO
    #define IPV6_PKTINFO 50
    #endif
    """
    enum:
        AF_INET
        AF_INET6
        INET6_ADDRSTRLEN
        IPPROTO_IP
        IPPROTO_IPV6
        IPV6_PKTINFO
        IPV6_RECVPKTINFO
        IP_PKTINFO
        MSG_DONTWAIT
        SOL_UDP
        UDP_GRO
        UDP_SEGMENT
    ctypedef unsigned int socklen_t
    struct in_addr:
        pass
    struct in6_addr:
        pass
    struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    struct sockaddr_storage:
        unsigned short ss_family
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        void* msg_name
        socklen_t msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr* CMSG_FIRSTHDR(msghdr*)
    cmsghdr* CMSG_NXTHDR(msghdr*, cmsghdr*)
    unsigned char* CMSG_DATA(cmsghdr*)
    size_t CMSG_LEN(size_t)
    size_t CMSG_SPACE(size_t)
    int recvmmsg(int, mmsghdr*, unsigned int, int, void*) nogil
    ssize_t sendmsg(int, const msghdr*, int) nogil
    int setsockopt(int, int, int, const void*, socklen_t)
    uint16_t htons(uint16_t)
    uint16_t ntohs(uint16_t)
    uint32_t htonl(uint32_t)
    uint32_t ntohl(uint32_t)
    const char* inet_ntop(int, const void*, char*, socklen_t)
    int inet_pton(int, const char*, void*)

cdef enum:
    BATCH = 16
    BUFFER_BYTES = 65536
    CONTROL_BYTES = 128
    # struct in_pktinfo: the interface, the address of ours that was asked, the destination in the header.
    PKTINFO_V4_BYTES = 12
    PKTINFO_V6_BYTES = 20
    SOURCE_AT_V4 = 4

cdef object _SOURCE_IS_GONE = (EINVAL, EADDRNOTAVAIL, ENETUNREACH)


cdef class Datagrams:
    """See `datagrams.Datagrams`."""

    cdef object _socket
    cdef int _fd
    cdef uint8_t* _buffers
    cdef uint8_t* _controls
    cdef mmsghdr* _messages
    cdef iovec* _vectors
    cdef sockaddr_storage* _names
    # The last peer heard of and the last one written to: mostly there is one.
    cdef sockaddr_storage _from
    cdef socklen_t _from_size
    cdef object _from_address
    cdef sockaddr_storage _to
    cdef socklen_t _to_size
    cdef object _to_address
    # The addresses of this host that these two use; no bytes if the kernel chooses.
    cdef uint8_t _from_local[16]
    cdef int _from_local_size
    cdef uint8_t _to_local[16]
    cdef int _to_local_size

    def __cinit__(self, sock, receive_bytes, *, answers_as_asked=False):
        cdef int on = 1
        cdef int failed = 0
        self._socket = sock
        self._fd = sock.fileno()
        self._buffers = <uint8_t*>malloc(BATCH * BUFFER_BYTES)  # pages that are never needed are never there
        self._controls = <uint8_t*>calloc(BATCH, CONTROL_BYTES)
        self._messages = <mmsghdr*>calloc(BATCH, sizeof(mmsghdr))
        self._vectors = <iovec*>calloc(BATCH, sizeof(iovec))
        self._names = <sockaddr_storage*>calloc(BATCH, sizeof(sockaddr_storage))
        if not (self._buffers and self._controls and self._messages and self._vectors and self._names):
            raise MemoryError
        # Where the kernel cannot join datagrams, they come one by one.
        setsockopt(self._fd, SOL_UDP, UDP_GRO, &on, sizeof(on))
        if answers_as_asked:
            if sock.family == AF_INET:
                failed = setsockopt(self._fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof(on))
            else:
                failed = setsockopt(self._fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof(on))
            if failed:
                raise OSError(errno, "cannot learn at which address datagrams arrive")

    def __dealloc__(self):
        free(self._buffers)
        free(self._controls)
        free(self._messages)
        free(self._vectors)
        free(self._names)

    def receive(self, int limit):
        """See `datagrams.Datagrams.receive`."""
        cdef list datagrams = []
        cdef int count, i, wanted
        cdef mmsghdr* message
        while True:
            wanted = BATCH
            for i in range(wanted):
                message = &self._messages[i]
                self._vectors[i].iov_base = self._buffers + i * BUFFER_BYTES
                self._vectors[i].iov_len = BUFFER_BYTES
                message.msg_hdr.msg_iov = &self._vectors[i]
                message.msg_hdr.msg_iovlen = 1
                message.msg_hdr.msg_name = &self._names[i]
                message.msg_hdr.msg_namelen = sizeof(sockaddr_storage)
                message.msg_hdr.msg_control = self._controls + i * CONTROL_BYTES
                message.msg_hdr.msg_controllen = CONTROL_BYTES
            count = recvmmsg(self._fd_now(), self._messages, wanted, MSG_DONTWAIT, NULL)
            if count < 0:
                if errno == EAGAIN or errno == EINTR:
                    return datagrams, 0
                return datagrams, errno
            for i in range(count):
                self._take(i, datagrams)
            if count < wanted or len(datagrams) >= limit:
                return datagrams, 0

    def send(self, bytes data not None, unsigned int segment, tuple address not None):
        """See `datagrams.Datagrams.send`."""
        cdef int error
        if address is not self._to_address and not self._write_to(address):
            return EAFNOSUPPORT
        error = self._send(data, segment, self._to_local_size)
        if self._to_local_size and error in _SOURCE_IS_GONE:
            # The host has lost that address, perhaps, or it is one that only receives: the kernel chooses.
            error = self._send(data, segment, 0)
        return error

    cdef int _send(self, bytes data, unsigned int segment, int local_size) except -1:
        cdef msghdr message
        cdef iovec vector
        cdef uint8_t control[CONTROL_BYTES]
        cdef cmsghdr* header
        cdef uint16_t size = <uint16_t>segment
        cdef size_t used = 0
        memset(&message, 0, sizeof(message))
        vector.iov_base = PyBytes_AS_STRING(data)
        vector.iov_len = PyBytes_GET_SIZE(data)
        message.msg_iov = &vector
        message.msg_iovlen = 1
        message.msg_name = &self._to
        message.msg_namelen = self._to_size
        if segment or local_size:
            memset(control, 0, sizeof(control))
            message.msg_control = control
            message.msg_controllen = CONTROL_BYTES
            header = CMSG_FIRSTHDR(&message)
            if segment:
                header.cmsg_level = SOL_UDP
                header.cmsg_type = UDP_SEGMENT
                header.cmsg_len = CMSG_LEN(sizeof(size))
                memcpy(CMSG_DATA(header), &size, sizeof(size))
                used = CMSG_SPACE(sizeof(size))
                header = CMSG_NXTHDR(&message, header)
            if local_size == 4:
                header.cmsg_level = IPPROTO_IP
                header.cmsg_type = IP_PKTINFO
                header.cmsg_len = CMSG_LEN(PKTINFO_V4_BYTES)
                memcpy(CMSG_DATA(header) + SOURCE_AT_V4, self._to_local, 4)
                used += CMSG_SPACE(PKTINFO_V4_BYTES)
            elif local_size == 16:
                header.cmsg_level = IPPROTO_IPV6
                header.cmsg_type = IPV6_PKTINFO
                header.cmsg_len = CMSG_LEN(PKTINFO_V6_BYTES)
                memcpy(CMSG_DATA(header), self._to_local, 16)
                used += CMSG_SPACE(PKTINFO_V6_BYTES)
            message.msg_controllen = used
        if sendmsg(self._fd_now(), &message, MSG_DONTWAIT) < 0:
            return errno
        return 0

    cdef int _fd_now(self) except -2:
        """The descriptor, or -1 once the socket was closed: the number may be another file's by then."""
        return <int>self._socket.fileno()

    cdef int _take(self, int i, list datagrams) except -1:
        """One message of the kernel: a datagram, or several of equal size (the last may be shorter)."""
        cdef mmsghdr* message = &self._messages[i]
        cdef const uint8_t* data = self._buffers + i * BUFFER_BYTES
        cdef Py_ssize_t size = message.msg_len, segment = size, at = 0, piece
        cdef int told
        cdef uint8_t* local = NULL
        cdef int local_size = 0
        cdef cmsghdr* header = CMSG_FIRSTHDR(&message.msg_hdr)
        while header is not NULL:
            if header.cmsg_level == SOL_UDP and header.cmsg_type == UDP_GRO:
                memcpy(&told, CMSG_DATA(header), sizeof(told))
                if told > 0:
                    segment = told
            elif header.cmsg_level == IPPROTO_IP and header.cmsg_type == IP_PKTINFO:
                local, local_size = <uint8_t*>CMSG_DATA(header) + SOURCE_AT_V4, 4
            elif header.cmsg_level == IPPROTO_IPV6 and header.cmsg_type == IPV6_PKTINFO:
                local, local_size = <uint8_t*>CMSG_DATA(header), 16
            header = CMSG_NXTHDR(&message.msg_hdr, header)
        address = self._address_of(i, message.msg_hdr.msg_namelen, local, local_size)
        if size == 0:
            datagrams.append((b"", address))
        while at < size:
            piece = min(segment, size - at)
            datagrams.append((PyBytes_FromStringAndSize(<char*>data + at, piece), address))
            at += piece
        return 0

    cdef object _address_of(self, int i, socklen_t size, uint8_t* local, int local_size):
        cdef sockaddr_storage* name = &self._names[i]
        if (
            self._from_address is None
            or size != self._from_size
            or memcmp(name, &self._from, size) != 0
            or local_size != self._from_local_size
            or (local_size and memcmp(local, self._from_local, local_size) != 0)
        ):
            self._from_address = _address(name, local, local_size)
            memcpy(&self._from, name, size)
            self._from_size = size
            if local_size:
                memcpy(self._from_local, local, local_size)
            self._from_local_size = local_size
        return self._from_address

    cdef bint _write_to(self, tuple address) except -1:
        """Make `address` the one to send to; False if it is none of a family we know."""
        cdef sockaddr_in* v4 = <sockaddr_in*>&self._to
        cdef sockaddr_in6* v6 = <sockaddr_in6*>&self._to
        cdef bytes host = address[0].encode()
        cdef Py_ssize_t parts = len(address)
        cdef bytes local
        self._to_address = None
        self._to_local_size = 0
        memset(&self._to, 0, sizeof(self._to))
        if parts == 3 or parts == 5:
            local = address[parts - 1]
            if PyBytes_GET_SIZE(local) != (4 if parts == 3 else 16):
                return False
            memcpy(self._to_local, PyBytes_AS_STRING(local), PyBytes_GET_SIZE(local))
            self._to_local_size = PyBytes_GET_SIZE(local)
        if parts <= 3:
            v4.sin_family = AF_INET
            v4.sin_port = htons(address[1])
            self._to_size = sizeof(sockaddr_in)
            if inet_pton(AF_INET, PyBytes_AS_STRING(host), &v4.sin_addr) != 1:
                return False
        else:
            v6.sin6_family = AF_INET6
            v6.sin6_port = htons(address[1])
            v6.sin6_flowinfo = htonl(address[2])
            v6.sin6_scope_id = address[3]
            self._to_size = sizeof(sockaddr_in6)
            if inet_pton(AF_INET6, PyBytes_AS_STRING(host), &v6.sin6_addr) != 1:
                return False
        self._to_address = address
        return True


cdef object _address(sockaddr_storage* name, uint8_t* local, int local_size):
    """A socket address as Python writes it, and where its datagram arrived if that is known."""
    cdef char text[64]
    cdef sockaddr_in* v4 = <sockaddr_in*>name
    cdef sockaddr_in6* v6 = <sockaddr_in6*>name
    cdef object host
    if name.ss_family == AF_INET:
        inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text))
        host = (<bytes>text).decode("ascii")
        if local_size:
            return host, ntohs(v4.sin_port), PyBytes_FromStringAndSize(<char*>local, local_size)
        return host, ntohs(v4.sin_port)
    inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text))
    host = (<bytes>text).decode("ascii")
    if local_size:
        return (
            host,
            ntohs(v6.sin6_port),
            ntohl(v6.sin6_flowinfo),
            v6.sin6_scope_id,
            PyBytes_FromStringAndSize(<char*>local, local_size),
        )
    return host, ntohs(v6.sin6_port), ntohl(v6.sin6_flowinfo), v6.sin6_scope_id
