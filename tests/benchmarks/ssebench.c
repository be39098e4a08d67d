/*
 * ssebench - measure servers that speak Server-Sent Events.
 *
 *   ssebench source   an upstream that emits stamped events
 *   ssebench load     many clients that read, check and time them
 *   ssebench publish  POSTs stamped events to a pub/sub server
 *
 * Every event carries the stamp "@TAG:SEQ:NS;" in its data: the stream it
 * belongs to, its position in that stream (from 1) and the CLOCK_MONOTONIC
 * time it was made.  Whatever sits between the maker and the reader, the
 * reader can tell loss, duplication, reordering, cross-talk and delay.
 *
 * One thread, one epoll; Linux only, libc only.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;

enum { MAX_HEAD = 32768, RECV_SIZE = 256 * 1024, BATCH = 1024, MAX_ID = 96 };

static volatile sig_atomic_t stopping;
static char rbuf[RECV_SIZE];

/* ------------------------------------------------------------ small tools */

static void die(const char *fmt, ...) {
	va_list ap;
	va_start(ap, fmt);
	fputs("ssebench: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	exit(1);
}

static void *need(void *p) {
	if (!p) die("out of memory");
	return p;
}

static u64 now_ns(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000000000u + (u64)t.tv_nsec;
}

static char *put_u64(char *p, u64 v) {
	char t[20];
	int n = 0;
	do t[n++] = (char)('0' + v % 10); while (v /= 10);
	while (n) *p++ = t[--n];
	return p;
}

static const char *get_u64(const char *p, const char *end, u64 *v) {
	const char *s = p;
	u64 r = 0;
	while (p < end && (unsigned)(*p - '0') < 10) r = r * 10 + (u64)(*p++ - '0');
	*v = r;
	return p == s ? NULL : p;
}

/* A growing byte queue; bytes [off, len) are live. */
struct buf { char *p; size_t off, len, cap; };

static char *buf_room(struct buf *b, size_t n) {
	if (b->off == b->len) b->off = b->len = 0;
	if (b->len + n > b->cap) {
		b->cap = (b->len + n) * 2;
		b->p = need(realloc(b->p, b->cap));
	}
	return b->p + b->len;
}

static void buf_add(struct buf *b, const char *p, size_t n) {
	memcpy(buf_room(b, n), p, n);
	b->len += n;
}

static void buf_str(struct buf *b, const char *s) { buf_add(b, s, strlen(s)); }

static void buf_free(struct buf *b) {
	free(b->p);
	*b = (struct buf){0};
}

/* Append `s` with every `mark` replaced by `value`. */
static void buf_subst(struct buf *b, const char *s, const char *mark, const char *value) {
	for (const char *m; (m = strstr(s, mark)); s = m + strlen(mark)) {
		buf_add(b, s, (size_t)(m - s));
		buf_str(b, value);
	}
	buf_str(b, s);
}

/* Log-linear histogram of nanoseconds: 32 steps per power of two (3%). */
struct hist { u64 n, max, slot[1920]; };

static void hist_add(struct hist *h, u64 v) {
	unsigned e = v < 32 ? 0 : 63u - (unsigned)__builtin_clzll(v) - 4;
	h->slot[e ? e * 32 + ((v >> (e - 1)) & 31) : v]++;
	h->n++;
	if (v > h->max) h->max = v;
}

static double hist_us(const struct hist *h, double q) {
	u64 want = (u64)((double)h->n * q), seen = 0;
	for (unsigned i = 0; h->n && i < 1920; i++)
		if ((seen += h->slot[i]) > want) {
			u64 v = i < 32 ? i : ((u64)(32 + i % 32) << (i / 32 - 1)) + ((1ull << (i / 32)) >> 2);
			return (double)(v < h->max ? v : h->max) / 1e3;
		}
	return (double)h->max / 1e3;
}

static void hist_json(const char *name, const struct hist *h) {
	printf(", \"%s\": {\"n\": %llu, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"max\": %.1f}",
	       name, (unsigned long long)h->n, hist_us(h, .5), hist_us(h, .9), hist_us(h, .99),
	       hist_us(h, .999), (double)h->max / 1e3);
}

struct field { const char *name; u64 value; };

static void fields_json(const struct field *f) {
	for (; f->name; f++) printf(", \"%s\": %llu", f->name, (unsigned long long)f->value);
}

static void on_signal(int sig) { (void)sig; stopping = 1; }

static void setup_process(void) {
	struct rlimit r;
	getrlimit(RLIMIT_NOFILE, &r);
	r.rlim_cur = r.rlim_max = 200000;
	if (setrlimit(RLIMIT_NOFILE, &r)) {          /* not root: take what is allowed */
		getrlimit(RLIMIT_NOFILE, &r);
		r.rlim_cur = r.rlim_max;
		setrlimit(RLIMIT_NOFILE, &r);
	}
	struct sigaction sa = {.sa_handler = on_signal};
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_TIMERSLACK, 1000);
}

static int poll_until(int ep, struct epoll_event *ev, u64 due) {
	u64 now = now_ns(), d = due > now ? due - now : 0;
	if (d > 1000000000u) d = 1000000000u;
	struct timespec ts = {(time_t)(d / 1000000000u), (long)(d % 1000000000u)};
	int n = epoll_pwait2(ep, ev, BATCH, &ts, NULL);
	if (n < 0 && errno != EINTR) die("epoll: %s", strerror(errno));
	return n < 0 ? 0 : n;
}

static void ep_set(int ep, int op, int fd, uint32_t events, void *ptr) {
	struct epoll_event ev = {.events = events, .data.ptr = ptr};
	if (epoll_ctl(ep, op, fd, &ev)) die("epoll_ctl: %s", strerror(errno));
}

static void set_nodelay(int fd) { setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)); }

/* Options: --name value, straight into a field of a struct. */
struct opt { const char *name; char kind; size_t at; };   /* u64, d(ouble), b(ool), s(tring), h(eader) */

static void opt_store(const struct opt *o, void *base, const char *text) {
	void *at = (char *)base + o->at;
	char *e = "";
	double v = o->kind == 'u' || o->kind == 'd' ? strtod(text, &e) : 0;
	if (*e || v < 0) die("--%s: not a number: %s", o->name, text);
	switch (o->kind) {
	case 'u': *(u64 *)at = (u64)v; break;
	case 'd': *(double *)at = v; break;
	case 'b': *(bool *)at = true; break;
	case 's': *(const char **)at = text; break;
	case 'h': buf_str(at, text); buf_str(at, "\r\n"); break;
	}
}

static void parse_options(char **argv, const struct opt *table, void *base) {
	for (char **a = argv + 1; *a; a++) {
		const struct opt *o = table;
		while (o->name && (strncmp(*a, "--", 2) || strcmp(*a + 2, o->name))) o++;
		if (!o->name) die("unknown option: %s", *a);
		const char *text = o->kind == 'b' ? "" : *++a;
		if (!text) die("--%s needs a value", o->name);
		opt_store(o, base, text);
	}
}

/* ------------------------------------------------------------- the events */

/* "@TAG:SEQ:NS;" padded with 'x' to `size` bytes (never cut short). */
static char *put_stamp(char *p, u64 tag, u64 seq, u64 ns, size_t size) {
	char *s = p;
	*p++ = '@';
	p = put_u64(p, tag);
	*p++ = ':';
	p = put_u64(p, seq);
	*p++ = ':';
	p = put_u64(p, ns);
	*p++ = ';';
	if ((size_t)(p - s) < size) {
		memset(p, 'x', size - (size_t)(p - s));
		p = s + size;
	}
	return p;
}

struct stamp { u64 tag, seq, ns; };

static bool get_stamp(const char *p, size_t n, struct stamp *s) {
	const char *end = p + n;
	if (!(p = memchr(p, '@', n))) return false;
	return (p = get_u64(p + 1, end, &s->tag)) && p < end && *p == ':' &&
	       (p = get_u64(p + 1, end, &s->seq)) && p < end && *p == ':' &&
	       (p = get_u64(p + 1, end, &s->ns)) && p < end && *p == ';';
}

/* ----------------------------------------------------------------- source */

/* What a stream is like: set by options, overridden by the query of each request. */
struct spec { u64 port, n, size, burst, abort, tag, wait, hold, ids, bcast, rst, resume; double rate; };

static const struct opt source_opts[] = {
#define F(kind, field) {#field, kind, offsetof(struct spec, field)}
	F('u', port), F('u', n), F('u', size), F('u', burst), F('u', abort), F('u', tag), F('u', wait),
	F('u', hold), F('u', ids), F('u', bcast), F('u', rst), F('u', resume), F('d', rate), {0}
#undef F
};

struct source_conn {
	int fd;
	enum { REQ_HEAD, REQ_BODY, STREAMING, HELD, DEAD } state;
	bool armed_out, body_chunked;
	u64 body_left, seq, base, start, due;
	size_t heap_at;                         /* place in the timer heap + 1 */
	struct spec spec;
	struct buf in, out;
	struct source_conn *prev, *next;        /* broadcast group, or free list */
};

static struct {
	int ep;
	struct spec defaults;
	struct source_conn **heap, *dead, group;        /* group: list head */
	size_t heap_n, heap_cap;
	struct { struct spec spec; u64 seq, start, due; unsigned members, blocked; } bc;
	u64 conns, streams, events, bytes, aborts, overruns, gone;
} S;

static void heap_place(struct source_conn *c, size_t i) { S.heap[i] = c; c->heap_at = i + 1; }

static void heap_fix(size_t i) {
	struct source_conn *c = S.heap[i];
	for (; i && S.heap[(i - 1) / 2]->due > c->due; i = (i - 1) / 2) heap_place(S.heap[(i - 1) / 2], i);
	for (size_t k; (k = 2 * i + 1) < S.heap_n; i = k) {
		if (k + 1 < S.heap_n && S.heap[k + 1]->due < S.heap[k]->due) k++;
		if (S.heap[k]->due >= c->due) break;
		heap_place(S.heap[k], i);
	}
	heap_place(c, i);
}

static void timer_off(struct source_conn *c) {
	if (!c->heap_at) return;
	size_t i = c->heap_at - 1;
	c->heap_at = 0;
	if (i == --S.heap_n) return;
	heap_place(S.heap[S.heap_n], i);
	heap_fix(i);
}

static void timer_on(struct source_conn *c, u64 due) {
	c->due = due;
	if (!c->heap_at) {
		if (S.heap_n == S.heap_cap)
			S.heap = need(realloc(S.heap, (S.heap_cap = S.heap_cap * 2 + 64) * sizeof *S.heap));
		heap_place(c, S.heap_n++);
	}
	heap_fix(c->heap_at - 1);
}

static void source_arm(struct source_conn *c, bool out) {
	if (c->armed_out == out) return;
	if (c->prev) S.bc.blocked += out ? 1 : -1u;
	c->armed_out = out;
	ep_set(S.ep, EPOLL_CTL_MOD, c->fd, EPOLLIN | (out ? EPOLLOUT : 0), c);
}

static void group_leave(struct source_conn *c) {
	if (!c->prev) return;
	if (c->armed_out) S.bc.blocked--;
	c->prev->next = c->next;
	c->next->prev = c->prev;
	c->prev = NULL;
	if (!--S.bc.members) S.bc.seq = 0;              /* the next group starts afresh */
}

static void source_close(struct source_conn *c) {
	if (c->state == DEAD) return;
	group_leave(c);
	timer_off(c);
	close(c->fd);
	buf_free(&c->in);
	buf_free(&c->out);
	c->state = DEAD;                                /* freed after this epoll batch */
	c->next = S.dead;
	S.dead = c;
}

/* Send what is queued. False when the socket is full or the peer has gone. */
static bool source_flush(struct source_conn *c) {
	while (c->out.off < c->out.len) {
		ssize_t k = send(c->fd, c->out.p + c->out.off, c->out.len - c->out.off, 0);
		if (k < 0) {
			if (errno == EAGAIN) source_arm(c, true);
			else S.gone++, source_close(c);
			return false;
		}
		c->out.off += (size_t)k;
		S.bytes += (u64)k;
	}
	return true;
}

/* One HTTP chunk holding `count` events numbered from `seq`. */
static void put_chunk(struct buf *b, const struct spec *sp, u64 seq, u64 count) {
	size_t worst = count * (sp->size + 128) + 32;
	char *start = buf_room(b, worst), *body = start + 10, *p = body, size[11];
	for (u64 i = 0; i < count; i++, seq++) {
		if (sp->ids) {
			memcpy(p, "id: ", 4);
			p = put_u64(p + 4, seq);
			*p++ = '\n';
		}
		memcpy(p, "data: ", 6);
		p = put_stamp(p + 6, sp->tag, seq, now_ns(), sp->size);
		*p++ = '\n';
		*p++ = '\n';
	}
	snprintf(size, sizeof size, "%08x\r\n", (unsigned)(p - body));
	memcpy(start, size, 10);
	memcpy(p, "\r\n", 2);
	b->len += (size_t)(p + 2 - start);
	S.events += count;
}

static void source_finish(struct source_conn *c) {
	group_leave(c);
	timer_off(c);
	if (c->spec.hold) { c->state = HELD; source_arm(c, false); return; }
	c->state = REQ_HEAD;
	c->in.off = c->in.len = 0;
	buf_str(&c->out, "0\r\n\r\n");
	if (source_flush(c)) source_arm(c, false);
}

static void source_abort(struct source_conn *c) {
	S.aborts++;
	if (c->spec.rst) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
	source_close(c);
}

/* Emit what is due on a private stream. */
static void source_pump(struct source_conn *c) {
	const struct spec *sp = &c->spec;
	for (int writes = 0;; writes++) {
		if (!source_flush(c)) return;
		if (c->state != STREAMING || c->prev) { source_arm(c, false); return; }
		if (sp->abort && c->seq - c->base >= sp->abort) { source_abort(c); return; }
		if (sp->n && c->seq >= sp->n) { source_finish(c); return; }
		if (sp->rate > 0) {
			u64 due = c->start + (u64)((double)(c->seq - c->base) / sp->rate * 1e9);
			if (due > now_ns()) { source_arm(c, false); timer_on(c, due); return; }
		} else if (writes == 64) {              /* let the others have a turn */
			source_arm(c, true);
			return;
		}
		u64 k = sp->burst;
		if (sp->n && k > sp->n - c->seq) k = sp->n - c->seq;
		if (sp->abort && k > sp->abort - (c->seq - c->base)) k = sp->abort - (c->seq - c->base);
		put_chunk(&c->out, sp, c->seq + 1, k);
		c->seq += k;
	}
}

/* Emit what is due to the whole broadcast group. */
static void group_pump(void) {
	static struct buf tick;
	struct spec *sp = &S.bc.spec;
	S.bc.due = UINT64_MAX;
	for (int ticks = 0; S.bc.members >= sp->wait && S.bc.members; ticks++) {
		u64 now = now_ns();
		if (!S.bc.seq) S.bc.start = now;
		if (sp->n && S.bc.seq >= sp->n) {
			while (S.group.next != &S.group) source_finish(S.group.next);
			return;
		}
		if (sp->rate > 0) S.bc.due = S.bc.start + (u64)((double)S.bc.seq / sp->rate * 1e9);
		else if (S.bc.blocked) return;          /* flat out: lockstep with the slowest */
		else S.bc.due = now;
		if (S.bc.due > now || ticks == 8) return;
		tick.len = 0;
		put_chunk(&tick, sp, S.bc.seq + 1, sp->burst);
		S.bc.seq += sp->burst;
		S.events += sp->burst * (S.bc.members - 1);
		for (struct source_conn *c = S.group.next, *next; c != &S.group; c = next) {
			next = c->next;
			buf_add(&c->out, tick.p, tick.len);
			if (c->out.len - c->out.off > (8u << 20)) S.overruns++, source_close(c);
			else if (!c->armed_out) source_flush(c);
		}
	}
}

static const char *header(const char *head, const char *name) {
	size_t k = strlen(name);
	for (const char *p = strstr(head, "\r\n"); p; p = strstr(p + 2, "\r\n"))
		if (!strncasecmp(p + 2, name, k) && p[2 + k] == ':') return p + 3 + k + strspn(p + 3 + k, " \t");
	return NULL;
}

static void source_begin(struct source_conn *c) {
	c->in.off = c->in.len = 0;
	c->state = STREAMING;
	S.streams++;
	buf_str(&c->out, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
	                 "X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n");
	c->start = now_ns();
	if (c->spec.bcast && source_flush(c)) {
		if (!S.bc.members++) S.bc.spec = c->spec;
		c->prev = S.group.prev;
		c->next = &S.group;
		c->prev->next = c->next->prev = c;
		S.bc.due = 0;
	}
	source_pump(c);
}

/* A complete request head is in c->in: read the query into c->spec. */
static void source_request(struct source_conn *c, char *head) {
	const char *h;
	struct spec *sp = &c->spec;
	c->body_chunked = (h = header(head, "transfer-encoding")) && !strncasecmp(h, "chunked", 7);
	c->body_left = (h = header(head, "content-length")) ? strtoull(h, NULL, 10) : 0;
	u64 last = (h = header(head, "last-event-id")) ? strtoull(h, NULL, 10) : 0;
	head[strcspn(head, "\r")] = 0;
	char *q = strchr(head, '?'), *save, *eq;
	if (q) *strchrnul(q, ' ') = 0;
	*sp = S.defaults;
	for (q = q ? strtok_r(q + 1, "&", &save) : NULL; q; q = strtok_r(NULL, "&", &save))
		for (const struct opt *o = source_opts; o->name && (eq = strchr(q, '=')); o++)
			if (!strncmp(o->name, q, (size_t)(eq - q)) && !o->name[eq - q]) opt_store(o, sp, eq + 1);
	if (!sp->burst) sp->burst = 1;
	if (sp->size > 1 << 20) sp->size = 1 << 20;
	if (sp->burst > 4096) sp->burst = 4096;
	sp->ids |= sp->resume;
	c->seq = c->base = sp->resume ? last : 0;
}

static void source_readable(struct source_conn *c) {
	ssize_t k = recv(c->fd, rbuf, sizeof rbuf, 0);
	if (k < 0 && errno == EAGAIN) return;
	if (k <= 0) { S.gone += c->state >= STREAMING; source_close(c); return; }
	if (c->state >= STREAMING) return;              /* pipelining is not supported */
	buf_add(&c->in, rbuf, (size_t)k);
	buf_room(&c->in, 1)[0] = 0;
	if (c->state == REQ_HEAD) {
		char *end = memmem(c->in.p, c->in.len, "\r\n\r\n", 4);
		if (!end) { if (c->in.len > MAX_HEAD) source_close(c); return; }
		c->in.off = (size_t)(end + 4 - c->in.p);
		end[2] = 0;
		source_request(c, c->in.p);
		c->state = REQ_BODY;
	}
	size_t have = c->in.len - c->in.off;
	bool whole = c->body_chunked ? have >= 5 && !memcmp(c->in.p + c->in.len - 5, "0\r\n\r\n", 5)
	                             : have >= c->body_left;
	if (whole) source_begin(c);
}

static void source_accept(int ls) {
	for (int fd; (fd = accept4(ls, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
		struct source_conn *c = need(calloc(1, sizeof *c));
		c->fd = fd;
		set_nodelay(fd);
		ep_set(S.ep, EPOLL_CTL_ADD, fd, EPOLLIN, c);
		S.conns++;
	}
}

static int source_main(char **argv) {
	S.defaults = (struct spec){.port = 9100, .n = 100, .size = 100, .burst = 1};
	parse_options(argv, source_opts, &S.defaults);
	int port = (int)S.defaults.port;
	int ls = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
	                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	setsockopt(ls, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	if (bind(ls, (void *)&a, sizeof a) || listen(ls, 65535)) die("port %d: %s", port, strerror(errno));
	S.ep = epoll_create1(EPOLL_CLOEXEC);
	S.group.next = S.group.prev = &S.group;
	S.bc.due = UINT64_MAX;
	ep_set(S.ep, EPOLL_CTL_ADD, ls, EPOLLIN, NULL);
	static struct epoll_event ev[BATCH];
	while (!stopping) {
		u64 due = S.heap_n ? S.heap[0]->due : UINT64_MAX;
		if (S.bc.members && S.bc.due < due) due = S.bc.due;
		int n = poll_until(S.ep, ev, due);
		for (int i = 0; i < n; i++) {
			struct source_conn *c = ev[i].data.ptr;
			if (!c) { source_accept(ls); continue; }
			if (c->state != DEAD && (ev[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))) source_readable(c);
			if (c->state != DEAD && (ev[i].events & EPOLLOUT)) source_pump(c);
		}
		for (u64 now = now_ns(); S.heap_n && S.heap[0]->due <= now;) {
			struct source_conn *c = S.heap[0];
			timer_off(c);
			source_pump(c);
		}
		if (S.bc.members) group_pump();
		for (struct source_conn *c; (c = S.dead); free(c)) S.dead = c->next;
	}
	const struct field f[] = {{"conns", S.conns}, {"streams", S.streams}, {"events", S.events}, {"bytes", S.bytes},
		{"aborts", S.aborts}, {"overruns", S.overruns}, {"client_gone", S.gone}, {0}};
	printf("{\"role\": \"source\"");
	fields_json(f);
	puts("}");
	return 0;
}

/* ------------------------------------------------------- HTTP client side */

struct target { struct sockaddr_in addr; char host[300], path[2048]; };

static void parse_url(const char *url, struct target *t) {
	char name[256], port[8] = "80";
	if (sscanf(url, "http://%255[^:/]:%7[0-9]", name, port) < 1) die("bad url: %s", url);
	const char *slash = strchr(url + 7, '/');
	snprintf(t->path, sizeof t->path, "%s", slash ? slash : "/");
	snprintf(t->host, sizeof t->host, "%s:%s", name, port);
	struct addrinfo hint = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *ai;
	if (getaddrinfo(name, port, &hint, &ai)) die("cannot resolve %s", name);
	memcpy(&t->addr, ai->ai_addr, sizeof t->addr);
	freeaddrinfo(ai);
}

/* Incremental response decoder; body bytes go to `body`, which says false to stop. */
struct http {
	enum { H_HEAD, H_RAW, H_SIZE, H_EXT, H_DATA, H_DATA_END, H_TRAILER, H_END } st;
	int status;
	bool quiet;                             /* trailer: nothing on this line yet */
	u64 left;                               /* UINT64_MAX: until close */
	struct buf head;
};

typedef bool body_fn(void *ctx, const char *p, size_t n);

static void http_reset(struct http *h) {
	buf_free(&h->head);
	*h = (struct http){0};
}

/* Consumes up to one response; returns the bytes used, or -1 (garbage, or told to stop). */
static ssize_t http_feed(struct http *h, const char *p, size_t n, body_fn *body, void *ctx) {
	const char *s = p, *end = p + n;
	while (p < end && h->st != H_END) switch (h->st) {
	case H_HEAD: {
		size_t before = h->head.len > 3 ? h->head.len - 3 : 0;
		buf_add(&h->head, p, (size_t)(end - p));
		buf_room(&h->head, 1)[0] = 0;
		char *e = memmem(h->head.p + before, h->head.len - before, "\r\n\r\n", 4);
		if (!e) { if (h->head.len > MAX_HEAD) return -1; return (ssize_t)n; }
		p = end - (h->head.p + h->head.len - (e + 4));
		e[2] = 0;
		if (sscanf(h->head.p, "HTTP/%*d.%*d %d", &h->status) != 1) return -1;
		const char *te = header(h->head.p, "transfer-encoding"), *cl = header(h->head.p, "content-length");
		h->left = cl ? strtoull(cl, NULL, 10) : UINT64_MAX;
		if (te && !strncasecmp(te, "chunked", 7)) h->st = H_SIZE, h->left = 0;
		else h->st = h->status == 204 || !h->left ? H_END : H_RAW;
		buf_free(&h->head);
		break;
	}
	case H_SIZE:
		if (isxdigit((unsigned char)*p)) {
			h->left = h->left * 16 + (u64)(*p <= '9' ? *p - '0' : (*p | 32) - 'a' + 10);
			p++;
			break;
		}
		h->st = H_EXT;
		break;
	case H_EXT:
		if (*p++ == '\n') h->st = h->left ? H_DATA : H_TRAILER, h->quiet = true;
		break;
	case H_RAW:
	case H_DATA: {
		size_t k = (size_t)(end - p);
		if (k > h->left) k = (size_t)h->left;
		if (!body(ctx, p, k)) return -1;
		p += k;
		if (h->left != UINT64_MAX && !(h->left -= k)) h->st = h->st == H_RAW ? H_END : H_DATA_END;
		break;
	}
	case H_DATA_END:
		if (*p++ == '\n') h->st = H_SIZE;
		break;
	case H_TRAILER:
		if (*p == '\n') { if (h->quiet) h->st = H_END; h->quiet = true; }
		else if (*p != '\r') h->quiet = false;
		p++;
		break;
	case H_END: break;
	}
	return p - s;
}

/* ------------------------------------------------------------------- load */

struct conn {
	int fd;
	enum { OFF, WAITING, CONNECTING, READING, DONE, FAILED } st;
	bool has_data, stamped, settled, any, quitting;
	unsigned index;
	u64 since, total, drop_at, opened, first, hi, window, data_len, wake;
	struct stamp ev;
	struct http http;
	struct buf line;                        /* an incomplete line */
	char id[MAX_ID], new_id[MAX_ID];
	struct conn *next;                      /* reconnect queue */
};

static struct {
	struct {
		const char *url, *method, *body, *resume_from, *pid, *feed, *label;
		struct buf headers;
		u64 conns, connecting, count, want, drop_every, reconnect, check_size;
		double duration, warmup, ramp_timeout, conn_rate;
		bool jitter, loop, check_tag;
	} o;
	struct target to;
	u64 connecting, open, settled, finished, goal, retry_ns;
	bool measuring, retry;
	int ep;
	struct conn *c, *queue, **queue_tail;
	/* over the whole run */
	u64 connects, connect_errors, http_errors, http_status, closes, ends, drops, no_id, restarts;
	u64 gaps, dups, reordered, crosstalk, bad_size;
	/* over the window */
	u64 events, bytes, recvs;
	struct hist lat, ready, first_event;
} L = {.o = {.conns = 1, .connecting = 256, .duration = 10, .warmup = 1, .ramp_timeout = 30,
             .reconnect = UINT64_MAX, .label = ""}};

static const struct opt load_opts[] = {
#define F(kind, name, field) {name, kind, offsetof(__typeof__(L.o), field)}
	F('s', "url", url), F('s', "method", method), F('s', "body", body), F('h', "header", headers),
	F('u', "conns", conns), F('d', "conn-rate", conn_rate), F('u', "connecting", connecting),
	F('d', "duration", duration), F('d', "warmup", warmup), F('d', "ramp-timeout", ramp_timeout),
	F('u', "count", count), F('u', "want", want), F('s', "resume-from", resume_from),
	F('u', "drop-every", drop_every), F('b', "jitter", jitter), F('u', "reconnect", reconnect),
	F('b', "loop", loop), F('b', "check-tag", check_tag), F('u', "check-size", check_size),
	F('s', "pid", pid), F('s', "feed", feed), F('s', "label", label), {0}
#undef F
};

static void load_queue(struct conn *c, u64 delay) {
	c->st = WAITING;
	c->wake = now_ns() + delay;
	c->next = NULL;
	*L.queue_tail = c;
	L.queue_tail = &c->next;
}

static void load_settle(struct conn *c) { if (!c->settled) c->settled = true, L.settled++; }

static void load_shut(struct conn *c) {
	if (c->fd < 0) return;
	L.connecting -= c->st == CONNECTING || !c->http.status;
	L.open--;
	close(c->fd);
	c->fd = -1;
	http_reset(&c->http);
	buf_free(&c->line);
	c->has_data = c->stamped = false;
	memcpy(c->new_id, c->id, MAX_ID);       /* an unfinished event's id does not count */
}

static void load_finish(struct conn *c, bool ok) {
	load_shut(c);
	c->st = ok ? DONE : FAILED;
	L.finished++;
	load_settle(c);
}

/* The connection broke, or ended, before we wanted it to. */
static void load_lost(struct conn *c) {
	load_shut(c);
	if (L.retry) load_queue(c, L.retry_ns);
	else load_finish(c, false);
}

static void load_request(struct conn *c) {
	static struct buf b;
	char num[24];
	b.off = b.len = 0;
	snprintf(num, sizeof num, "%u", c->index);
	buf_str(&b, L.o.method);
	buf_str(&b, " ");
	buf_subst(&b, L.to.path, "{i}", num);
	buf_str(&b, " HTTP/1.1\r\nHost: ");
	buf_str(&b, L.to.host);
	buf_str(&b, "\r\nAccept: text/event-stream\r\n");
	buf_room(&L.o.headers, 1)[0] = 0;
	buf_subst(&b, L.o.headers.p, "{i}", num);
	if (c->id[0]) {
		buf_str(&b, "Last-Event-ID: ");
		buf_str(&b, c->id);
		buf_str(&b, "\r\n");
	}
	if (L.o.body) {
		static struct buf body;
		body.len = 0;
		buf_subst(&body, L.o.body, "{i}", num);
		snprintf(num, sizeof num, "%zu", body.len);
		buf_str(&b, "Content-Length: ");
		buf_str(&b, num);
		buf_str(&b, "\r\n\r\n");
		buf_add(&b, body.p, body.len);
	} else buf_str(&b, "\r\n");
	if (send(c->fd, b.p, b.len, 0) != (ssize_t)b.len) L.connect_errors++, load_lost(c);
}

static void load_open(struct conn *c) {
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0) die("socket: %s", strerror(errno));
	set_nodelay(c->fd);
	c->since = 0;
	c->drop_at = L.o.drop_every && L.o.jitter ? 1 + (u64)random() % (2 * L.o.drop_every) : L.o.drop_every;
	c->opened = now_ns();
	c->st = CONNECTING;
	L.connects++;
	L.connecting++;
	L.open++;
	if (connect(c->fd, (void *)&L.to.addr, sizeof L.to.addr) && errno != EINPROGRESS) {
		L.connect_errors++;
		load_lost(c);
	} else ep_set(L.ep, EPOLL_CTL_ADD, c->fd, EPOLLOUT, c);
}

static void check_seq(struct conn *c, u64 seq) {
	if (!c->any) {
		c->any = true;
		c->first = c->hi = seq;
		c->window = 1;
	} else if (seq > c->hi) {
		u64 step = seq - c->hi;
		L.gaps += step - 1;
		c->window = step < 64 ? c->window << step | 1 : 1;
		c->hi = seq;
	} else if (c->hi - seq < 64 && !(c->window >> (c->hi - seq) & 1)) {
		c->window |= 1ull << (c->hi - seq);     /* late: it was counted as a gap */
		L.reordered++;
		if (L.gaps) L.gaps--;
	} else L.dups++;
}

/* A blank line: the event is complete. False when this connection is to be dropped. */
static bool load_dispatch(struct conn *c) {
	memcpy(c->id, c->new_id, sizeof c->id);
	if (!c->has_data) return true;
	if (c->stamped) {
		u64 t = now_ns();
		check_seq(c, c->ev.seq);
		if (L.o.check_tag && c->ev.tag != c->index) L.crosstalk++;
		if (L.o.check_size && c->data_len != L.o.check_size) L.bad_size++;
		if (L.measuring) hist_add(&L.lat, t > c->ev.ns ? t - c->ev.ns : 0);
		if (!c->since++) hist_add(&L.first_event, t - c->opened);
		c->total++;
	}
	if (L.measuring) L.events++;
	c->has_data = c->stamped = false;
	if (L.goal && c->total >= L.goal) { c->quitting = true; return false; }
	if (c->drop_at && c->since >= c->drop_at) {
		if (c->id[0]) { c->quitting = true; return false; }
		L.no_id++;                              /* nothing to resume from: stay */
		c->drop_at += L.o.drop_every;
	}
	return true;
}

static bool load_line(struct conn *c, const char *p, size_t n) {
	if (n && p[n - 1] == '\r') n--;
	if (!n) return load_dispatch(c);
	if (n >= 5 && !memcmp(p, "data:", 5)) {
		size_t skip = n > 5 && p[5] == ' ' ? 6 : 5;
		if (!c->has_data) c->data_len = n - skip;
		c->has_data = true;
		if (!c->stamped) c->stamped = get_stamp(p + skip, n - skip, &c->ev);
	} else if (n >= 3 && !memcmp(p, "id:", 3)) {
		size_t skip = n > 3 && p[3] == ' ' ? 4 : 3;
		if (n - skip < MAX_ID) snprintf(c->new_id, MAX_ID, "%.*s", (int)(n - skip), p + skip);
	}
	return true;
}

static bool load_body(void *ctx, const char *p, size_t n) {
	struct conn *c = ctx;
	for (const char *end = p + n, *nl; p < end; p = nl + 1) {
		if (!(nl = memchr(p, '\n', (size_t)(end - p)))) {
			buf_add(&c->line, p, (size_t)(end - p));
			break;
		}
		if (c->line.len) {
			buf_add(&c->line, p, (size_t)(nl - p));
			size_t len = c->line.len;
			c->line.len = 0;
			if (!load_line(c, c->line.p, len)) return false;
		} else if (!load_line(c, p, (size_t)(nl - p))) return false;
	}
	return true;
}

static void load_restart(struct conn *c) {
	c->any = false;
	c->id[0] = c->new_id[0] = 0;
	c->total = 0;
	L.restarts++;
	load_shut(c);
	load_queue(c, 0);
}

static void load_readable(struct conn *c) {
	ssize_t k = recv(c->fd, rbuf, sizeof rbuf, 0);
	if (k < 0 && errno == EAGAIN) return;
	if (k <= 0) { L.closes++; load_lost(c); return; }
	if (L.measuring) L.bytes += (u64)k, L.recvs++;
	bool headless = !c->http.status;
	ssize_t used = http_feed(&c->http, rbuf, (size_t)k, load_body, c);
	if (headless && c->http.status) {
		L.connecting--;
		load_settle(c);
		if (c->http.status != 200) {
			L.http_errors++;
			L.http_status = (u64)c->http.status;
			if (c->http.status == 204 || !L.retry) load_finish(c, false);
			else load_lost(c);
			return;
		}
	}
	if (c->quitting) {
		c->quitting = false;
		if (L.goal && c->total >= L.goal) {
			hist_add(&L.ready, now_ns() - c->opened);
			if (L.o.loop) load_restart(c);
			else load_finish(c, true);
		} else {
			L.drops++;
			load_shut(c);
			load_queue(c, L.retry_ns);
		}
	} else if (used < 0) { L.http_errors++; load_lost(c); }
	else if (c->http.st == H_END) {
		L.ends++;
		if (L.o.loop) load_restart(c);
		else load_finish(c, true);
	}
}

static void load_event(struct conn *c, uint32_t events) {
	if (c->st == CONNECTING) {
		int err = 0;
		getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &(socklen_t){sizeof err});
		if (err) { L.connect_errors++; load_lost(c); return; }
		ep_set(L.ep, EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
		c->st = READING;
		load_request(c);
	} else if (c->st == READING && events) load_readable(c);
}

/* CPU seconds and RSS of the watched processes. */
struct usage { double cpu; long rss_kib; };

/* All threads of the process, to the nanosecond: /proc/PID/stat counts ticks of 10 ms. */
static double cpu_of(pid_t pid) {
	clockid_t clock;
	struct timespec t;
	if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t)) return 0;
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct usage usage_of(const char *pids) {
	struct usage u = {0};
	for (const char *p = pids; p && *p; p += strcspn(p, ", "), p += strspn(p, ", ")) {
		char path[64], text[1024];
		snprintf(path, sizeof path, "/proc/%d/stat", atoi(p));
		FILE *f = fopen(path, "r");
		size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
		if (f) fclose(f);
		text[n] = 0;
		char *s = strrchr(text, ')');
		long rss;
		if (s && sscanf(s + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d "
		                "%*u %*u %ld", &rss) == 1)
			u.rss_kib += rss * (sysconf(_SC_PAGESIZE) / 1024);
		u.cpu += cpu_of(atoi(p));
	}
	return u;
}

static double own_cpu(void) {
	struct rusage r;
	getrusage(RUSAGE_SELF, &r);
	return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static int load_main(char **argv) {
	parse_options(argv, load_opts, &L.o);
	if (!L.o.url) die("--url is needed");
	if (!L.o.method) L.o.method = L.o.body ? "POST" : "GET";
	L.goal = L.o.want ? L.o.want : L.o.count;
	L.retry = L.o.reconnect != UINT64_MAX;
	L.retry_ns = L.retry ? L.o.reconnect * 1000000 : 0;
	L.queue_tail = &L.queue;
	const char *pids = L.o.pid;
	unsigned conns = (unsigned)L.o.conns, started = 0;
	parse_url(L.o.url, &L.to);
	L.ep = epoll_create1(EPOLL_CLOEXEC);
	L.c = need(calloc(conns, sizeof *L.c));
	for (unsigned i = 0; i < conns; i++) {
		L.c[i].fd = -1;
		L.c[i].index = i;
		if (L.o.resume_from) {
			snprintf(L.c[i].id, MAX_ID, "%s", L.o.resume_from);
			memcpy(L.c[i].new_id, L.c[i].id, MAX_ID);
		}
	}

	struct usage before = usage_of(pids), from = before, to, feed = usage_of(L.o.feed);
	u64 begun = now_ns(), ready_at = 0, start = 0, end = 0;
	double own = own_cpu();
	if (L.o.want) L.measuring = true, start = begun, end = begun + (u64)(L.o.duration * 1e9);
	static struct epoll_event ev[BATCH];
	while (!stopping) {
		u64 now = now_ns(), wake = now + 100000000;
		for (; L.queue && L.queue->wake <= now && L.connecting < L.o.connecting;) {
			struct conn *c = L.queue;
			if (!(L.queue = c->next)) L.queue_tail = &L.queue;
			load_open(c);
		}
		while (started < conns && L.connecting < L.o.connecting) {
			u64 due = L.o.conn_rate > 0 ? begun + (u64)(started / L.o.conn_rate * 1e9) : 0;
			if (due > now) { wake = due; break; }
			load_open(&L.c[started++]);
		}
		if (L.queue && L.queue->wake < wake) wake = L.queue->wake;
		if (!start) {                           /* ramp, then warm up, then measure */
			if (!ready_at && (L.settled == conns || now > begun + (u64)(L.o.ramp_timeout * 1e9))) ready_at = now;
			if (ready_at && now >= ready_at + (u64)(L.o.warmup * 1e9)) {
				from = usage_of(pids);
				feed = usage_of(L.o.feed);
				own = own_cpu();
				L.measuring = true;
				start = now_ns();
				end = start + (u64)(L.o.duration * 1e9);
			}
		} else if (now >= end || L.finished == conns) break;
		if (start && end < wake) wake = end;
		int n = poll_until(L.ep, ev, L.connecting < L.o.connecting && L.queue && L.queue->wake <= now ? now : wake);
		for (int i = 0; i < n; i++) load_event(ev[i].data.ptr, ev[i].events);
	}
	u64 stop = now_ns();
	if (!start) start = stop;
	to = usage_of(pids);
	own = own_cpu() - own;
	feed.cpu = usage_of(L.o.feed).cpu - feed.cpu;
	double secs = (double)(stop - start) / 1e9, cpu = to.cpu - from.cpu;
	u64 lo = UINT64_MAX, first_hi = 0, last_lo = UINT64_MAX, last_hi = 0, silent = 0, done = 0;
	for (unsigned i = 0; i < conns; i++) {
		struct conn *c = &L.c[i];
		done += c->st == DONE;
		if (!c->any) { silent++; continue; }
		if (c->first < lo) lo = c->first;
		if (c->first > first_hi) first_hi = c->first;
		if (c->hi < last_lo) last_lo = c->hi;
		if (c->hi > last_hi) last_hi = c->hi;
	}
	printf("{\"role\": \"load\", \"label\": \"%s\", \"secs\": %.3f, \"per_s\": %.0f", L.o.label, secs,
	       secs > 0 ? (double)L.lat.n / secs : 0);
	if (silent == conns) lo = last_lo = 0;
	const struct field f[] = {{"conns", conns}, {"open", L.open}, {"done", done}, {"silent", silent},
		{"events", L.events}, {"stamped", L.lat.n}, {"bytes", L.bytes}, {"recvs", L.recvs}, {"gaps", L.gaps},
		{"dups", L.dups}, {"reordered", L.reordered}, {"crosstalk", L.crosstalk}, {"bad_size", L.bad_size},
		{"first_min", lo}, {"first_max", first_hi}, {"last_min", last_lo}, {"last_max", last_hi},
		{"connects", L.connects}, {"connect_errors", L.connect_errors}, {"http_errors", L.http_errors},
		{"http_status", L.http_status}, {"closes", L.closes}, {"ends", L.ends}, {"drops", L.drops},
		{"no_id", L.no_id}, {"restarts", L.restarts}, {0}};
	fields_json(f);
	hist_json("lat_us", &L.lat);
	hist_json("first_event_us", &L.first_event);
	if (L.goal) hist_json("complete_us", &L.ready);
	printf(", \"bench_cpu_pct\": %.0f, \"feed_cpu_pct\": %.0f", secs > 0 ? 100 * own / secs : 0,
	       secs > 0 ? 100 * feed.cpu / secs : 0);
	if (pids)
		printf(", \"server\": {\"cpu_s\": %.6f, \"cpu_pct\": %.2f, \"cpu_us_per_event\": %.4f, \"rss_kib\": %ld, "
		       "\"rss_kib_per_conn\": %.2f}", cpu, secs > 0 ? 100 * cpu / secs : 0,
		       L.lat.n ? cpu * 1e6 / (double)L.lat.n : 0, to.rss_kib,
		       (double)(to.rss_kib - before.rss_kib) / conns);
	puts("}");
	return 0;
}

/* ---------------------------------------------------------------- publish */

static bool ignore_body(void *ctx, const char *p, size_t n) { (void)ctx; (void)p; (void)n; return true; }

/* One POST holding `count` stamped events: wrap( item sep item ... ). */
static void publish_post(struct buf *b, const struct target *t, const char *headers, const char *wrap,
                         const char *item, const char *sep, u64 seq, u64 count, u64 size) {
	static struct buf items, body;
	char *stamp = need(malloc(size + 80)), num[24];
	items.off = items.len = body.off = body.len = 0;
	for (u64 i = 0; i < count; i++, seq++) {
		*put_stamp(stamp, 0, seq, now_ns(), size) = 0;
		if (i) buf_str(&items, sep);
		buf_subst(&items, item, "{}", stamp);
	}
	buf_room(&items, 1)[0] = 0;
	buf_subst(&body, wrap, "{}", items.p);
	free(stamp);
	snprintf(num, sizeof num, "%zu", body.len);
	const char *part[] = {"POST ", t->path, " HTTP/1.1\r\nHost: ", t->host, "\r\n", headers,
	                      "Content-Length: ", num, "\r\n\r\n"};
	for (size_t i = 0; i < sizeof part / sizeof *part; i++) buf_str(b, part[i]);
	buf_add(b, body.p, body.len);
}

static int dial(const struct target *t, int ep) {
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	set_nodelay(fd);
	if (connect(fd, (const void *)&t->addr, sizeof t->addr)) die("connect: %s", strerror(errno));
	ep_set(ep, EPOLL_CTL_ADD, fd, EPOLLIN, NULL);
	return fd;
}

static int publish_main(char **argv) {
	struct pub {
		const char *url, *item, *sep, *wrap;
		struct buf headers;
		u64 n, size, burst, window;
		double rate, duration;
		bool close;                     /* a connection for each POST */
	} o = {.item = "{}", .sep = "", .wrap = "{}", .n = UINT64_MAX, .size = 100, .burst = 1, .window = 1,
	       .duration = 1e6};
	static const struct opt opts[] = {
#define F(kind, name, field) {name, kind, offsetof(struct pub, field)}
		F('s', "url", url), F('s', "item", item), F('s', "sep", sep), F('s', "wrap", wrap),
		F('h', "header", headers), F('u', "n", n), F('u', "size", size), F('u', "burst", burst),
		F('u', "window", window), F('d', "rate", rate), F('d', "duration", duration),
		F('b', "close", close), {0}
#undef F
	};
	parse_options(argv, opts, &o);
	if (o.close) o.window = 1;
	if (!o.url || !o.window || !o.burst) die("--url is needed; --window and --burst are at least 1");
	struct target t;
	struct buf out = {0};
	parse_url(o.url, &t);
	buf_room(&o.headers, 1)[0] = 0;
	int ep = epoll_create1(EPOLL_CLOEXEC), fd = dial(&t, ep);
	struct http h = {0};
	static struct hist lat;
	u64 *sent_at = need(calloc(o.window, sizeof *sent_at));
	u64 seq = 0, posts = 0, answers = 0, refused = 0, start = now_ns(), stop_at = start + (u64)(L.o.duration * 1e9);
	struct epoll_event ev[BATCH];
	while (!stopping && answers < posts + (seq < o.n)) {
		u64 now = now_ns(), wake = now + 1000000000u;
		if (now >= stop_at) o.n = seq;            /* no more; collect the answers */
		for (; posts - answers < o.window && seq < o.n; posts++) {
			u64 due = o.rate > 0 ? start + (u64)((double)seq / o.rate * 1e9) : 0;
			if (due > now) { wake = due; break; }
			u64 k = o.burst < o.n - seq ? o.burst : o.n - seq;
			out.off = out.len = 0;
			publish_post(&out, &t, o.headers.p, o.wrap, o.item, o.sep, seq + 1, k, o.size);
			for (ssize_t w; out.off < out.len; out.off += (size_t)w)
				if ((w = send(fd, out.p + out.off, out.len - out.off, 0)) < 0) die("send: %s", strerror(errno));
			sent_at[posts % o.window] = now_ns();
			seq += k;
		}
		if (!poll_until(ep, ev, wake)) continue;
		ssize_t k = recv(fd, rbuf, sizeof rbuf, 0);
		if (k <= 0) die("the server closed the publishing connection after %llu posts", (unsigned long long)posts);
		for (char *p = rbuf; k > 0;) {
			ssize_t used = http_feed(&h, p, (size_t)k, ignore_body, NULL);
			if (used < 0) die("bad response");
			p += used;
			k -= used;
			if (h.st != H_END) continue;
			refused += h.status / 100 != 2;
			hist_add(&lat, now_ns() - sent_at[answers++ % o.window]);
			http_reset(&h);
			if (o.close) { close(fd); fd = dial(&t, ep); break; }
		}
	}
	double secs = (double)(now_ns() - start) / 1e9;
	const struct field f[] = {{"events", seq}, {"posts", posts}, {"refused", refused}, {0}};
	printf("{\"role\": \"publish\", \"secs\": %.3f, \"per_s\": %.0f", secs, (double)seq / secs);
	fields_json(f);
	hist_json("post_us", &lat);
	puts("}");
	return 0;
}

int main(int argc, char **argv) {
	setup_process();
	if (argc > 1 && !strcmp(argv[1], "source")) return source_main(argv + 1);
	if (argc > 1 && !strcmp(argv[1], "load")) return load_main(argv + 1);
	if (argc > 1 && !strcmp(argv[1], "publish")) return publish_main(argv + 1);
	fputs("usage: ssebench source|load|publish [options]   (see README.md)\n", stderr);
	return 2;
}
