package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/internal/window"
)

// namespace is a prefix that no other test and no other run has.
func namespace(t testing.TB) func(*Options) {
	name := fmt.Sprintf("test-%d", time.Now().UnixNano())
	return func(o *Options) { o.Namespace = name }
}

// onReal runs a test on a real broker too; its topics are removed afterwards.
func onReal(t *testing.T) (*Driver, func() *Driver) {
	addresses := brokers(t, "KAFKA_BROKERS")
	prefix := namespace(t)
	d := newDriver(t, addresses, prefix, single)
	t.Cleanup(func() {
		c, err := kgo.NewClient(kgo.SeedBrokers(addresses...))
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		admin := kadm.NewClient(c)
		topics, err := admin.ListTopics(ctx)
		if err != nil {
			t.Error(err)
			return
		}
		var ours []string
		for _, name := range topics.Names() {
			if strings.HasPrefix(name, d.prefix()) {
				ours = append(ours, name)
			}
		}
		if _, err := admin.DeleteTopics(ctx, ours...); err != nil {
			t.Error(err)
		}
	})
	return d, func() *Driver {
		return newDriver(t, addresses, func(o *Options) { o.Namespace = d.options.Namespace }, single)
	}
}

func TestRealRestartAndLargest(t *testing.T) {
	d, _ := onReal(t)
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("billing.profile", "a.b.c"), s)
	publish(t, d, numbered("a.b.c", "k", 0, 10)...)
	drivertest.Eventually(t, "ten", func() bool { return s.Count() == 10 })
	all := s.Got()
	r.Finish(t, all[0], all[1], all[3], all[5], all[6], all[9])
	r.End(t)
	s = drivertest.NewSink()
	r = drivertest.Start(t, d, subscription("billing.profile", "a.b.c"), s)
	publish(t, d, message("a.b.c", "k", "10"))
	drivertest.Eventually(t, "the last", func() bool { return strings.HasSuffix(s.Bodies(), "10") })
	if got, want := s.Bodies(), "2 4 7 8 10"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	r.Finish(t, s.Got()...)

	large := message("a.b.c", "k", "large")
	large.Body = []byte(strings.Repeat("x", d.Features().MaxSize-len("k")-len("large")-len(driver.HeaderEventID)))
	publish(t, d, large)
	drivertest.Eventually(t, "the largest", func() bool { return s.Count() == 6 })
	letter := driver.DeadLetter{Subscription: "billing.profile", Channel: "a.b.c", ID: "large", Reason: "exhausted", Attempts: 5, Body: large.Body,
		Headers: large.Headers, Err: strings.Repeat("error ", 5000), Stack: strings.Repeat("stack ", 10_000)}
	if err := d.PutDeadLetter(t.Context(), letter); err != nil {
		t.Fatal(err)
	}
	// A foreign record as large as the broker takes has a dead letter too.
	letter.Body = []byte(strings.Repeat("y", 1_048_000))
	if err := d.PutDeadLetter(t.Context(), letter); err != nil {
		t.Fatal(err)
	}
}

// TestRealFullMetadata: the longest metadata that can be is stored by a real
// broker and comes back.
func TestRealFullMetadata(t *testing.T) {
	d, _ := onReal(t)
	const count = window.Most - 1
	publish(t, d, message("a.b.c", "warm", "0"))
	var messages []driver.Message
	for n := range count {
		messages = append(messages, message("a.b.c", fmt.Sprint("k", n), "x"))
	}
	publish(t, d, messages...)
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	drivertest.Eventually(t, "a full window", func() bool { return s.Count() == window.Most })
	var every []driver.Delivery
	for n, d := range s.Got() {
		if n%2 == 1 {
			every = append(every, d)
		}
	}
	r.Finish(t, every...)
	stored, err := d.storedPositions(t.Context(), d.GroupName("x.y"), []string{d.BrokerName("a.b.c")})
	if err != nil {
		t.Fatal(err)
	}
	at := stored[d.BrokerName("a.b.c")][0]
	if at.At != 0 || len(at.Metadata) < 3300 || len(at.Metadata) > window.MostText {
		t.Fatalf("offset %d, %d characters", at.At, len(at.Metadata))
	}
	r.End(t)
	s = drivertest.NewSink()
	drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	drivertest.Eventually(t, "the other half", func() bool { return s.Count() == window.Most/2 })
}

func TestRealTwoMembers(t *testing.T) {
	d, more := onReal(t)
	d.options.Partitions = 4
	publish(t, d, message("a.b.c", "warm", "0"))
	s := drivertest.NewSink()
	now := subscription("x.y", "a.b.c")
	now.StartAt.Mode = driver.StartNow
	drivertest.Start(t, d, now, s)
	s2 := drivertest.NewSink()
	drivertest.Start(t, more(), now, s2)
	drivertest.Eventually(t, "two each", func() bool {
		return len(s.Reports(driver.ReportAssigned))-len(s.Reports(driver.ReportRevoked)) == 2 && len(s2.Reports(driver.ReportAssigned)) == 2
	})
	var messages []driver.Message
	for n := range 100 {
		messages = append(messages, message("a.b.c", fmt.Sprint("k", n), fmt.Sprint(n)))
	}
	publish(t, d, messages...)
	drivertest.Eventually(t, "a hundred", func() bool { return s.Count()+s2.Count() >= 100 })
	if s.Count() == 0 || s2.Count() == 0 || s.Count()+s2.Count() != 100 {
		t.Fatalf("%d and %d", s.Count(), s2.Count())
	}
	for _, d := range append(s.Got(), s2.Got()...) {
		if d.Key == "warm" {
			t.Fatal("it was published before")
		}
	}
}

func TestRealOutOfRange(t *testing.T) {
	d, _ := onReal(t)
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	publish(t, d, numbered("a.b.c", "k", 0, 10)...)
	drivertest.Eventually(t, "ten", func() bool { return s.Count() == 10 })
	r.Finish(t, s.Got()[:3]...)
	r.End(t)
	offsets := make(kadm.Offsets)
	offsets.AddOffset(d.BrokerName("a.b.c"), 0, 7, -1)
	if _, err := d.admin.DeleteRecords(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
	c, err := d.Subscribe(t.Context(), subscription("x.y", "a.b.c"), drivertest.NewSink())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Run(ctx); !errors.Is(err, kerr.OffsetOutOfRange) {
		t.Errorf("Run: %v", err)
	}
	if err := c.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestRealUnknownTopic(t *testing.T) {
	d, _ := onReal(t)
	d.options.Provision = ProvisionNever
	began := time.Now()
	err := d.Publish(t.Context(), []driver.Message{message("no.such.topic", "k", "1")})
	if err == nil || !strings.Contains(err.Error(), "no-such-topic does not exist") || time.Since(began) > 5*time.Second {
		t.Fatalf("%v after %v", err, time.Since(began))
	}
}

// secure returns options for the broker behind TLS and SASL.
func secure(t testing.TB) Options {
	t.Helper()
	addresses := brokers(t, "TIDINGS_KAFKA_SECURE_BROKERS")
	pem, err := os.ReadFile(os.Getenv("TIDINGS_KAFKA_SECURE_CA"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in TIDINGS_KAFKA_SECURE_CA")
	}
	o := Options{Brokers: addresses, TLS: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, SessionTimeout: 6 * time.Second, RebalanceTimeout: 10 * time.Second,
		SASL: SASL{Mechanism: ScramSHA512, User: "app", Password: os.Getenv("TIDINGS_KAFKA_SECURE_PASSWORD")}}
	namespace(t)(&o)
	return o
}

func TestSecureMechanisms(t *testing.T) {
	for _, mechanism := range []Mechanism{Plain, ScramSHA256, ScramSHA512} {
		t.Run(string(mechanism), func(t *testing.T) {
			o := secure(t)
			o.SASL.Mechanism = mechanism
			d := newDriver(t, nil, func(into *Options) { *into = o })
			if err := d.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			s := drivertest.NewSink()
			drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
			publish(t, d, message("a.b.c", "k", "1"))
			drivertest.Eventually(t, "one", func() bool { return s.Count() == 1 })
		})
	}
}

func TestSecureRefusals(t *testing.T) {
	const wrong = "a-wrong-password-planted"
	plain := func(o *Options) { o.TLS = nil }
	for name, c := range map[string]struct {
		change func(*Options)
		parts  []string
	}{
		"wrong password":   {func(o *Options) { o.SASL.Password = wrong }, []string{"wrong password", `"app"`, "SASL_AUTHENTICATION_FAILED"}},
		"unknown CA":       {func(o *Options) { o.TLS = &tls.Config{MinVersion: tls.VersionTLS12} }, []string{"authority that is not known", "RootCAs", "x509"}},
		"no SASL":          {func(o *Options) { o.SASL = SASL{} }, []string{"expects SASL", "none"}},
		"TLS expected":     {plain, []string{"expects TLS"}},
		"TLS not expected": {func(o *Options) { o.Brokers = brokers(t, "KAFKA_BROKERS"); o.SASL = SASL{} }, []string{"does not speak TLS"}},
		"unreachable":      {func(o *Options) { o.Brokers = []string{"127.0.0.1:1"} }, []string{"cannot be reached", "127.0.0.1:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := secure(t)
			c.change(&o)
			d := newDriver(t, nil, func(into *Options) { *into = o })
			began := time.Now()
			err := d.Check(t.Context())
			if err == nil {
				t.Fatal("accepted")
			}
			t.Log(err)
			for _, part := range append(c.parts, "kafka: ") {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("no %q in %v", part, err)
				}
			}
			if strings.Contains(err.Error(), wrong) || strings.Contains(err.Error(), os.Getenv("TIDINGS_KAFKA_SECURE_PASSWORD")) {
				t.Error("a password is in the error")
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestSecureStranger(t *testing.T) {
	o := secure(t)
	d := newDriver(t, nil, func(into *Options) { *into = o })
	publish(t, d, message("a.b.c", "k", "1"))
	drivertest.Start(t, d, subscription("x.y", "a.b.c"), drivertest.NewSink()).End(t)
	o.SASL.User, o.SASL.Password = "stranger", os.Getenv("TIDINGS_KAFKA_SECURE_STRANGER_PASSWORD")
	stranger := newDriver(t, nil, func(into *Options) { *into = o })
	err := stranger.Publish(t.Context(), []driver.Message{message("a.b.c", "k", "1")})
	if got := states(t, err); got != "not stored" || !errors.Is(err, kerr.TopicAuthorizationFailed) || !strings.Contains(err.Error(), "grant") {
		t.Errorf("Publish: %s, %v", got, err)
	}
	if _, err := stranger.Subscribe(t.Context(), subscription("x.y", "a.b.c"), drivertest.NewSink()); !errors.Is(err, kerr.TopicAuthorizationFailed) || !strings.Contains(err.Error(), `"stranger"`) {
		t.Errorf("Subscribe: %v", err)
	}
	if _, err := stranger.storedPositions(t.Context(), d.GroupName("x.y"), []string{d.BrokerName("a.b.c")}); !errors.Is(err, kerr.GroupAuthorizationFailed) || !strings.Contains(err.Error(), "group") {
		t.Errorf("group: %v", err)
	}
}
