package kafka

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestOptionsComplainAtOnce(t *testing.T) {
	_, err := New(Options{
		Brokers: []string{"localhost"}, Namespace: "no spaces", SASL: SASL{Mechanism: "GSSAPI"}, Partitions: -1,
		MaxEvents: 30_000, RevokeMargin: time.Hour, InstanceID: "a b", Provision: 7,
	})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{"not host:port", "Namespace", "GSSAPI", "Partitions", "MaxEvents 30000", "RevokeMargin", "InstanceID", "Provision"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("no complaint about %s in:\n%v", part, err)
		}
	}
	for _, line := range strings.Split(err.Error(), "\n") {
		if !strings.HasPrefix(line, "kafka: ") {
			t.Errorf("%q does not say whose it is", line)
		}
	}
	if _, err := New(Options{}); err == nil || !strings.Contains(err.Error(), "Brokers is empty") {
		t.Errorf("no brokers: %v", err)
	}
	plain := Options{Brokers: []string{"kafka.example:9092"}, SASL: SASL{Mechanism: Plain, User: "app", Password: "p"}}
	if _, err := New(plain); err == nil || !strings.Contains(err.Error(), "unencrypted") {
		t.Errorf("PLAIN without TLS: %v", err)
	}
	plain.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if d, err := New(plain); err != nil {
		t.Error(err)
	} else if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSecretsStaySecret(t *testing.T) {
	const secret = "hunter2-planted-secret"
	cluster := newCluster(t)
	var log bytes.Buffer
	options := Options{
		Brokers: cluster.ListenAddrs(), SASL: SASL{Mechanism: ScramSHA512, User: "app", Password: secret},
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	d, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var said []string
	said = append(said, fmt.Sprintf("%v %+v %#v %s", options, options, options, options.SASL), fmt.Sprintf("%v %+v %#v %s", d, d, d, d))
	said = append(said, fmt.Sprintf("%v %+v %#v", &options, &options, &options))
	said = append(said, fmt.Sprint(d.Check(ctx)))
	bad := options
	bad.SASL.Mechanism = "X"
	_, err = New(bad)
	said = append(said, fmt.Sprint(err))
	slog.New(slog.NewTextHandler(&log, nil)).Info("options", "sasl", options.SASL, "options", options, "driver", d)
	if err := d.Close(ctx); err != nil {
		t.Fatal(err)
	}
	for _, text := range append(said, log.String()) {
		if strings.Contains(text, secret) {
			t.Errorf("the password is in %q", text)
		}
	}
	if !strings.Contains(said[0], "app") {
		t.Errorf("the user is not in %q", said[0])
	}
}

func TestNames(t *testing.T) {
	for namespace, prefix := range map[string]string{"": "", "shop": "shop."} {
		d := newDriver(t, []string{"localhost:1"}, func(o *Options) { o.Namespace = namespace })
		for got, want := range map[string]string{
			d.BrokerName("identity.user.created"):                            prefix + "events.identity-user-created",
			d.GroupName("billing.profile"):                                   prefix + "billing.profile",
			d.DeadLetterName("identity.user.created", "billing.profile"):     prefix + "events.identity-user-created.billing.profile.dead",
			fmt.Sprint(d.Name(), d.Features().History, d.Features().MaxSize): "kafka" + "true " + "1000000",
		} {
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	}
	d := newDriver(t, []string{"localhost:1"}, func(o *Options) { o.Retention = time.Hour })
	if got := d.Features().RedeliveryHorizon; got != time.Hour {
		t.Errorf("RedeliveryHorizon %v", got)
	}
}
