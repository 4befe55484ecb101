package streams

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/redis/redistest"
)

// eachServer runs a test on miniredis and, where it is there, on real Redis. The
// test has a namespace of its own.
func eachServer(t *testing.T, test func(t *testing.T, url, namespace string)) {
	t.Run("miniredis", func(t *testing.T) {
		test(t, "redis://"+miniredis.RunT(t).Addr(), "test")
	})
	t.Run("redis", func(t *testing.T) {
		url := drivertest.Server(t, "REDIS_URL")
		namespace := fmt.Sprintf("test-%d-%d", time.Now().UnixNano(), namespaces.Add(1))
		admin := plainClient(t, url)
		t.Cleanup(func() { removeNamespace(t, admin, namespace) })
		test(t, url, namespace)
	})
}

func newDriver(t testing.TB, url, namespace string, change ...func(*Options)) *Driver {
	t.Helper()
	options := Options{Client: clientOption(t, url, nil), Namespace: namespace, Shards: 1, LeaseTime: 2 * time.Second}
	for _, f := range change {
		f(&options)
	}
	d, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

func subscription(name string) driver.Subscription {
	return driver.Subscription{Name: name, Channels: []string{"a.b.c"}, StartAt: driver.StartAt{Mode: driver.StartBeginning}}
}

func message(key, body string) driver.Message {
	return driver.Message{Channel: "a.b.c", Key: key, ID: body, Body: []byte(body), Headers: driver.Headers{{Name: driver.HeaderEventID, Value: body}, {Name: driver.HeaderAggregateID, Value: key}}}
}

func publish(t testing.TB, d *Driver, bodies ...string) {
	t.Helper()
	var messages []driver.Message
	for _, body := range bodies {
		messages = append(messages, message("k", body))
	}
	if err := d.Publish(t.Context(), messages); err != nil {
		t.Fatalf("Publish: %v", err)
	}
}

// takeAway ends a lease and the life of its owner, as if that had been too slow, and
// gives it to nobody.
func takeAway(t testing.TB, client rueidis.Client, d *Driver, name string) {
	t.Helper()
	if err := client.Do(t.Context(), client.B().Hset().Key(ownerKey(d.stream("a.b.c", 0), name)).FieldValue().FieldValue("until", "0").Build()).Error(); err != nil {
		t.Fatal(err)
	}
	if err := client.Do(t.Context(), client.B().Del().Key(d.membersKey(name)).Build()).Error(); err != nil {
		t.Fatal(err)
	}
}

// An instance that lost its shard settles and reads nothing any more, also when it
// does not know yet.
func TestOldEpochIsRefused(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		admin := plainClient(t, url)
		slow := newDriver(t, url, namespace, func(o *Options) { o.LeaseTime = time.Minute })
		s := drivertest.NewSink()
		r := drivertest.Start(t, slow, subscription("x.y"), s)
		publish(t, slow, "0", "1", "2")
		drivertest.Eventually(t, "three", func() bool { return s.Count() == 3 })
		r.StopRun(t) // it reads no more, and believes that it owns the shard
		takeAway(t, admin, slow, "x.y")

		next := newDriver(t, url, namespace)
		s2 := drivertest.NewSink()
		drivertest.Start(t, next, subscription("x.y"), s2)
		drivertest.Eventually(t, "its successor has the three", func() bool { return s2.Bodies() == "0 1 2" })
		if first, second := s.Got()[0].Source, s2.Got()[0].Source; second.Epoch <= first.Epoch || second.Name != first.Name {
			t.Errorf("sources %v, then %v", first, second)
		}
		r.Finish(t, s.Got()...)
		if lost := s.Lost(); len(lost) != 1 || lost[0] != s.Got()[0].Source {
			t.Errorf("lost %v", lost)
		}
		pending, err := admin.Do(t.Context(), admin.B().Xpending().Key(slow.stream("a.b.c", 0)).Group("x.y").Build()).ToArray()
		if err != nil {
			t.Fatal(err)
		}
		if n, _ := pending[0].AsInt64(); n != 3 {
			t.Errorf("%d entries are pending: the one that was too slow settled", n)
		}
	})
}

func exists(t testing.TB, client rueidis.Client, stream string) []string {
	t.Helper()
	entries, err := parseEntries(client.Do(t.Context(), client.B().Xrange().Key(stream).Start("-").End("+").Build()))
	if err != nil {
		t.Fatal(err)
	}
	var bodies []string
	for n := range entries {
		m, _ := entries[n].message("a.b.c")
		bodies = append(bodies, string(m.Body))
	}
	return bodies
}

func TestTrimKeepsWhatIsNotFinished(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		admin := plainClient(t, url)
		d := newDriver(t, url, namespace, func(o *Options) {
			o.Retention = time.Nanosecond
			o.TrimInterval = time.Hour
			o.UnknownGroupGrace = time.Hour
		})
		stream := d.stream("a.b.c", 0)
		check := func(why, want string) {
			t.Helper()
			if err := d.trim(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(exists(t, admin, stream), " "); got != want {
				t.Errorf("%s: left %q, want %q", why, got, want)
			}
		}
		s, away := drivertest.NewSink(), drivertest.NewSink()
		r := drivertest.Start(t, d, subscription("x.here"), s)
		gone := drivertest.Start(t, d, subscription("x.away"), away)
		publish(t, d, "0", "1", "2", "3")
		drivertest.Eventually(t, "all", func() bool { return s.Count() == 4 && away.Count() == 4 })
		check("nothing is finished", "0 1 2 3")
		r.Finish(t, s.Got()[0], s.Got()[1], s.Got()[3])
		gone.Finish(t, away.Got()[0])
		gone.End(t)
		check("a group that is away has finished one", "1 2 3")

		away = drivertest.NewSink()
		gone = drivertest.Start(t, d, subscription("x.away"), away)
		drivertest.Eventually(t, "the rest", func() bool { return away.Count() == 3 })
		gone.Finish(t, away.Got()...)
		check("one is in hand", "2 3")

		if err := admin.Do(t.Context(), admin.B().XgroupDestroy().Key(stream).Group("x.away").Build()).Error(); err != nil {
			t.Fatal(err)
		}
		r.Finish(t, s.Got()...)
		gone.StopRun(t)
		check("a declared group is missing", "2 3")
		if err := admin.Do(t.Context(), admin.B().Srem().Key(d.groupsKey("a.b.c")).Member("x.away").Build()).Error(); err != nil {
			t.Fatal(err)
		}

		if err := admin.Do(t.Context(), createGroup(admin, stream, "nobody's", id{})).Error(); err != nil {
			t.Fatal(err)
		}
		check("an unknown group has not read it", "2 3")
		found := false
		for _, report := range s.Reports(driver.ReportWarning) {
			found = found || strings.Contains(report.Text, "group nobody's")
		}
		if !found {
			t.Error("the unknown group is not reported")
		}
		d.options.UnknownGroupGrace = 0
		check("the grace of the unknown group is over", "")
	})
}

// A group that Redis lost goes on after what was settled: not at the end, where
// what came meanwhile would be skipped.
func TestGroupThatIsLostResumes(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		admin := plainClient(t, url)
		d := newDriver(t, url, namespace)
		destroy := func() {
			t.Helper()
			if err := admin.Do(t.Context(), admin.B().XgroupDestroy().Key(d.stream("a.b.c", 0)).Group("x.y").Build()).Error(); err != nil {
				t.Fatal(err)
			}
		}
		now := subscription("x.y")
		now.StartAt.Mode = driver.StartNow
		s := drivertest.NewSink()
		publish(t, d, "before")
		r := drivertest.Start(t, d, now, s)
		publish(t, d, "0", "1", "2")
		drivertest.Eventually(t, "three", func() bool { return s.Count() == 3 })
		r.Finish(t, s.Got()[0], s.Got()[2])
		destroy()
		publish(t, d, "3")
		drivertest.Eventually(t, "the next", func() bool { return s.Count() == 4 })
		r.Finish(t, s.Got()...)
		if got := s.Bodies(); got != "0 1 2 3" {
			t.Errorf("got %s", got)
		}
		if len(s.Reports(driver.ReportWarning)) == 0 {
			t.Error("not reported")
		}
		publish(t, d, "4")
		drivertest.Eventually(t, "one more", func() bool { return s.Count() == 5 })
		r.End(t)

		destroy()
		publish(t, d, "5")
		s = drivertest.NewSink()
		drivertest.Start(t, newDriver(t, url, namespace), now, s)
		drivertest.Eventually(t, "what was not settled, and what came meanwhile", func() bool { return s.Bodies() == "4 5" })
	})
}

// After a flush the subscription goes on with what is published from then on.
func TestFlush(t *testing.T) {
	server := miniredis.RunT(t)
	d := newDriver(t, "redis://"+server.Addr(), "")
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.y"), s)
	publish(t, d, "0", "1")
	drivertest.Eventually(t, "two", func() bool { return s.Count() == 2 })
	r.Finish(t, s.Got()[0])
	server.FlushAll()
	publish(t, d, "2", "3")
	drivertest.Eventually(t, "the next two", func() bool { return s.Count() == 4 })
	r.Finish(t, s.Got()...)
	if first, last := s.Got()[0].Source, s.Got()[3].Source; last.Epoch <= first.Epoch {
		t.Errorf("epoch %d after %d", last.Epoch, first.Epoch)
	}
	if got := s.Bodies(); got != "0 1 2 3" {
		t.Errorf("got %s", got)
	}
}

func TestNumberOfShardsIsCompared(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		d := newDriver(t, url, namespace, func(o *Options) { o.Shards = 4 })
		publish(t, d, "0")
		other := newDriver(t, url, namespace, func(o *Options) { o.Shards = 5 })
		_, err := other.Subscribe(t.Context(), subscription("x.y"), drivertest.NewSink())
		if !errors.Is(err, errShards) || !strings.Contains(err.Error(), "has 4 shards") || !strings.Contains(err.Error(), "Options.Shards is 5") {
			t.Errorf("Subscribe: %v", err)
		}
		if err := other.Publish(t.Context(), []driver.Message{message("k", "1")}); !errors.Is(err, errShards) {
			t.Errorf("Publish: %v", err)
		}
	})
}

func TestForeignEntryBecomesADeadLetter(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		admin := plainClient(t, url)
		d := newDriver(t, url, namespace)
		s := drivertest.NewSink()
		drivertest.Start(t, d, subscription("x.y"), s)
		put := admin.B().Xadd().Key(d.stream("a.b.c", 0)).Id("*").FieldValue().FieldValue("user", "1").FieldValue("name", "Ann")
		if err := admin.Do(t.Context(), put.Build()).Error(); err != nil {
			t.Fatal(err)
		}
		drivertest.Eventually(t, "it", func() bool { return s.Count() == 1 })
		got := s.Got()[0]
		var fields map[string]string
		if err := json.Unmarshal(got.Body, &fields); err != nil || got.GiveUp != foreign || fields["user"] != "1" || fields["name"] != "Ann" {
			t.Errorf("got %+v, %s: %v", got, got.Body, err)
		}
	})
}

// One stream cannot be written: what belongs to it is not stored, the rest is.
func TestPublishInParts(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		admin := plainClient(t, url)
		d := newDriver(t, url, namespace, func(o *Options) { o.Shards = 8 })
		var messages []driver.Message
		for n := range 600 {
			messages = append(messages, message(fmt.Sprint("k", n%50), fmt.Sprint(n)))
		}
		broken := d.streamOf("a.b.c", "k0")
		if err := admin.Do(t.Context(), admin.B().Set().Key(broken).Value("not a stream").Build()).Error(); err != nil {
			t.Fatal(err)
		}
		var failed *driver.PublishError
		if err := d.Publish(t.Context(), messages); !errors.As(err, &failed) {
			t.Fatalf("Publish: %v", err)
		}
		for n, result := range failed.Results {
			want := driver.Stored
			if d.streamOf("a.b.c", messages[n].Key) == broken {
				want = driver.NotStored
			}
			if result.State != want || (want == driver.NotStored) != (result.Err != nil) {
				t.Fatalf("message %d: %v, %v", n, result.State, result.Err)
			}
		}
		huge := message("k", "big")
		huge.Body = make([]byte, 1<<20)
		if err := d.Publish(t.Context(), []driver.Message{message("k", "1"), huge}); !errors.Is(err, driver.ErrTooLarge) {
			t.Errorf("too large: %v", err)
		}
		if err := admin.Do(t.Context(), admin.B().Del().Key(broken).Build()).Error(); err != nil {
			t.Fatal(err)
		}
	})
}

// No more is fetched than may be in hand.
func TestBounds(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		d := newDriver(t, url, namespace)
		bounded := subscription("x.y")
		bounded.MaxEvents = 10
		s := drivertest.NewSink()
		r := drivertest.Start(t, d, bounded, s)
		var bodies []string
		for n := range 100 {
			bodies = append(bodies, fmt.Sprint(n))
		}
		publish(t, d, bodies...)
		drivertest.Eventually(t, "a pause", func() bool { return len(s.Reports(driver.ReportPaused)) == 1 })
		if n := s.Count(); n != 10 {
			t.Fatalf("%d in hand", n)
		}
		for s.Count() < 100 {
			had := s.Count()
			r.Finish(t, s.Got()...)
			drivertest.Eventually(t, "more", func() bool { return s.Count() > had })
		}
		r.Finish(t, s.Got()...)
		if got := s.Bodies(); got != strings.Join(bodies, " ") {
			t.Errorf("got %s", got)
		}
		if len(s.Reports(driver.ReportResumed)) == 0 {
			t.Error("not resumed")
		}
	})
}

func TestWarnings(t *testing.T) {
	for name, test := range map[string]struct {
		settings []string
		want     []string
	}{
		"as promised":    {[]string{"--appendonly", "yes", "--appendfsync", "always"}, nil},
		"no persistence": {nil, []string{"appendonly is no"}},
		"every second":   {[]string{"--appendonly", "yes", "--appendfsync", "everysec"}, []string{"appendfsync is everysec"}},
		"eviction":       {[]string{"--appendonly", "yes", "--appendfsync", "always", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"}, []string{"maxmemory-policy allkeys-lru"}},
		"no eviction":    {[]string{"--appendonly", "yes", "--appendfsync", "always", "--maxmemory", "100mb", "--maxmemory-policy", "noeviction"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t, test.settings...)
			d := newDriver(t, server.URL(), "")
			s := drivertest.NewSink()
			for _, subscribed := range []string{"x.y", "x.z"} {
				if _, err := d.Subscribe(t.Context(), subscription(subscribed), s); err != nil {
					t.Fatal(err)
				}
			}
			got := s.Reports(driver.ReportWarning)
			if len(got) != len(test.want) {
				t.Fatalf("warnings %+v", got)
			}
			for n := range got {
				if !strings.Contains(got[n].Text, test.want[n]) {
					t.Errorf("%q, want %q", got[n].Text, test.want[n])
				}
			}
		})
	}
}

func TestOptions(t *testing.T) {
	_, err := New(Options{Namespace: "a b", Shards: 5000, LeaseTime: time.Millisecond, MaxEvents: -1, TrimInterval: -1})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{"streams: ", "InitAddress", "Namespace", "Shards is 5000", "LeaseTime", "MaxEvents is -1", "TrimInterval"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in %v", part, err)
		}
	}
	d := newDriver(t, "redis://:secret@"+authenticated(t), "")
	if text := fmt.Sprintf("%v %+v %#v", d, d, d); strings.Contains(text, "secret") {
		t.Errorf("a secret is shown: %s", text)
	}
}

func authenticated(t testing.TB) string {
	server := miniredis.RunT(t)
	server.RequireAuth("secret")
	return server.Addr()
}

func TestSubscribeTwiceAndClosed(t *testing.T) {
	d := newDriver(t, "redis://"+miniredis.RunT(t).Addr(), "")
	unset := subscription("x.y")
	unset.StartAt = driver.StartAt{}
	if _, err := d.Subscribe(t.Context(), unset, drivertest.NewSink()); err == nil || !strings.Contains(err.Error(), "StartAt Beginning") {
		t.Errorf("no StartAt: %v", err)
	}
	c, err := d.Subscribe(t.Context(), subscription("x.y"), drivertest.NewSink())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Subscribe(t.Context(), unset, drivertest.NewSink()); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("twice: %v", err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Errorf("Close without Run: %v", err)
	}
	if err := d.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	for range 2 {
		if err := d.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Subscribe(t.Context(), unset, drivertest.NewSink()); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("Subscribe: %v", err)
	}
	if err := d.Publish(t.Context(), []driver.Message{message("k", "1")}); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("Publish: %v", err)
	}
	if err := d.Check(t.Context()); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("Check: %v", err)
	}
}
