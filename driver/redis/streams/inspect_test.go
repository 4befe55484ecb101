package streams

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/redis/redistest"
)

// declared is the topology of one subscription to the channel of these tests.
func declared(name string, former ...string) driver.Topology {
	return driver.Topology{
		Format:        driver.TopologyFormat,
		Channels:      []driver.TopologyChannel{{Name: "a.b.c", Types: []string{"a.b.c"}, Published: true}},
		Subscriptions: []driver.TopologySubscription{{Name: name, FormerNames: former, Channels: []string{"a.b.c"}, Types: []string{"a.b.c"}}},
	}
}

func found(t testing.TB, d *Driver, topology driver.Topology, check string) (subjects []string) {
	t.Helper()
	findings, err := d.Inspect(t.Context(), topology, driver.InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if f.What == "" || f.Why == "" || f.Fix == "" || f.Subject == "" {
			t.Errorf("a finding without words: %+v", f)
		}
		if f.Check == check {
			subjects = append(subjects, string(f.Severity)+" "+f.Subject)
		}
	}
	return subjects
}

func TestInspectSettings(t *testing.T) {
	for check, arguments := range map[string][]string{
		"redis-eviction":    {"--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"},
		"redis-appendonly":  {"--appendonly", "no"},
		"redis-appendfsync": {"--appendonly", "yes", "--appendfsync", "everysec"},
		"redis-memory":      {"--maxmemory", "1mb", "--maxmemory-policy", "noeviction"},
	} {
		server := redistest.Start(t, arguments...)
		if got := found(t, newDriver(t, server.URL(), "test"), declared("x.y"), check); !slices.Equal(got, []string{"weak redis"}) {
			t.Errorf("%s: %v", check, got)
		}
	}
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always", "--maxmemory", "100mb")
	findings, err := newDriver(t, server.URL(), "test").Inspect(t.Context(), declared("x.y"), driver.InspectOptions{})
	if err != nil || len(findings) != 0 {
		t.Errorf("as promised: %v, %v", findings, err)
	}
}

func TestInspectGroups(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		if strings.HasSuffix(t.Name(), "/miniredis") {
			t.Skip("its XINFO GROUPS tells a wrong lag")
		}
		d := newDriver(t, url, namespace)
		s := drivertest.NewSink()
		r := drivertest.Start(t, d, subscription("x.y"), s)
		publish(t, d, "1", "2", "3")
		drivertest.Eventually(t, "three", func() bool { return s.Count() == 3 })
		if got := found(t, d, declared("x.y"), "subscription-lag"); got != nil {
			t.Errorf("while it runs: %v", got)
		}
		if _, err := d.DeleteSubscription(t.Context(), "x.y"); !errors.Is(err, driver.ErrInUse) {
			t.Errorf("deleting what runs: %v", err)
		}
		r.Finish(t, s.Got()...)
		r.End(t)
		if got := found(t, d, declared("x.y"), "subscription-lag"); got != nil {
			t.Errorf("nothing is behind: %v", got)
		}
		publish(t, d, "4", "5")
		if got := found(t, d, declared("x.y"), "subscription-lag"); !slices.Equal(got, []string{"broken subscription x.y"}) {
			t.Errorf("behind: %v", got)
		}
		if got := found(t, d, declared("x.z"), "subscription-unowned"); !slices.Equal(got, []string{"weak subscription x.y"}) {
			t.Errorf("unowned: %v", got)
		}
		other := newDriver(t, url, namespace, func(o *Options) { o.Shards = 2 })
		if got := found(t, other, declared("x.y"), "redis-shards"); len(got) != 1 {
			t.Errorf("shards: %v", got)
		}
		if err := d.PutDeadLetter(t.Context(), driver.DeadLetter{Subscription: "x.y", Channel: "a.b.c", ID: "1", Body: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		stored, err := d.StoredSubscriptions(t.Context(), driver.StoredOptions{Count: true})
		if err != nil || len(stored) != 1 || stored[0].Lag != 2 || stored[0].Instances != 0 || stored[0].DeadLetters != 1 || !strings.Contains(stored[0].Position, "delivered until") {
			t.Errorf("%+v, %v", stored, err)
		}
		if stored, err := d.StoredSubscriptions(t.Context(), driver.StoredOptions{Prefix: "z."}); err != nil || len(stored) != 0 {
			t.Errorf("another module: %+v, %v", stored, err)
		}
		deleted, err := d.DeleteSubscription(t.Context(), "x.y")
		if err != nil || len(deleted) < 3 {
			t.Errorf("%v, %v", deleted, err)
		}
		if stored, err := d.StoredSubscriptions(t.Context(), driver.StoredOptions{}); err != nil || len(stored) != 0 {
			t.Errorf("deleted: %+v, %v", stored, err)
		}
		if deleted, err := d.DeleteSubscription(t.Context(), "x.y"); err != nil || len(deleted) != 0 {
			t.Errorf("again: %v, %v", deleted, err)
		}
	})
}

func TestProvisionRecordsShards(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		d := newDriver(t, url, namespace)
		for _, step := range []struct {
			dry  bool
			want driver.ResourceState
		}{{true, driver.ResourceMissing}, {false, driver.ResourceMade}, {true, driver.ResourceThere}, {false, driver.ResourceThere}} {
			resources, err := d.Provision(t.Context(), declared("x.y"), step.dry)
			if err != nil || len(resources) != 1 || resources[0].State != step.want {
				t.Errorf("dry %v: %+v, %v", step.dry, resources, err)
			}
		}
	})
}

// TestRename: what was finished under the former name is finished, what was not
// comes, in order, and nothing is taken while the former one is alive.
func TestRename(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		d := newDriver(t, url, namespace)
		s := drivertest.NewSink()
		r := drivertest.Start(t, d, subscription("x.old"), s)
		publish(t, d, "0", "1", "2", "3", "4")
		drivertest.Eventually(t, "five", func() bool { return s.Count() == 5 })
		all := s.Got()
		r.Finish(t, all[0], all[1], all[3])
		if _, err := d.Rename(t.Context(), "x.old", subscription("x.new")); !errors.Is(err, driver.ErrInUse) {
			t.Errorf("while it runs: %v", err)
		}
		r.End(t)
		publish(t, d, "5")
		moved, err := d.Rename(t.Context(), "x.old", subscription("x.new"))
		if err != nil || moved != 1 {
			t.Errorf("%d, %v", moved, err)
		}
		if moved, err := d.Rename(t.Context(), "x.old", subscription("x.new")); err != nil || moved != 0 {
			t.Errorf("again: %d, %v", moved, err)
		}
		if moved, err := d.Rename(t.Context(), "x.never", subscription("x.new")); err != nil || moved != 0 {
			t.Errorf("of nothing: %d, %v", moved, err)
		}
		stored, err := d.StoredSubscriptions(t.Context(), driver.StoredOptions{})
		if err != nil || len(stored) != 1 || stored[0].Name != "x.new" {
			t.Errorf("%+v, %v", stored, err)
		}
		s = drivertest.NewSink()
		unset := subscription("x.new")
		unset.StartAt.Mode = driver.StartUnset // it is not new
		drivertest.Start(t, d, unset, s)
		drivertest.Eventually(t, "the last", func() bool { return strings.HasSuffix(s.Bodies(), "5") })
		if got, want := s.Bodies(), "2 3 4 5"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// TestGrants: with what Grants prints, and with nothing else, a user can run the
// application.
func TestGrants(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	admin := plainClient(t, server.URL())
	d := newDriver(t, server.URL(), "shop")
	grants := d.Grants(declared("x.y", "x.old"), "app")
	if len(grants) != 1 || !strings.HasPrefix(grants[0].Text, "ACL SETUSER app on ") {
		t.Fatalf("%+v", grants)
	}
	line := strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(grants[0].Text), "<password>", "hunter22"), "'", "")
	words := strings.Fields(line)
	if err := admin.Do(t.Context(), admin.B().Arbitrary(words[0], words[1]).Args(words[2:]...).Build()).Error(); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	app := newDriver(t, strings.Replace(server.URL(), "redis://", "redis://app:hunter22@", 1), "shop")
	s := drivertest.NewSink()
	r := drivertest.Start(t, app, subscription("x.y"), s)
	publish(t, app, "1", "2")
	drivertest.Eventually(t, "two", func() bool { return s.Count() == 2 })
	r.Finish(t, s.Got()...)
	if err := app.PutDeadLetter(t.Context(), driver.DeadLetter{Subscription: "x.y", Channel: "a.b.c", ID: "1", Body: []byte("x")}); err != nil {
		t.Error(err)
	}
	if err := app.trim(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := app.Inspect(t.Context(), declared("x.y"), driver.InspectOptions{}); err != nil {
		t.Error(err)
	}
	r.End(t)
	if moved, err := app.Rename(t.Context(), "x.y", subscription("x.z")); err != nil || moved != 1 {
		t.Errorf("%d, %v", moved, err)
	}
	if err := app.client.Do(t.Context(), app.client.B().Set().Key("other:key").Value("1").Build()).Error(); err == nil {
		t.Error("it may write the keys of others")
	}
	refusals, err := admin.Do(t.Context(), admin.B().Arbitrary("ACL", "LOG").Build()).ToArray()
	if err != nil || len(refusals) != 1 { // the one just above
		t.Errorf("%d commands were refused: %v", len(refusals), err)
	}
}
