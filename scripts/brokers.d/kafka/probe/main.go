// Command probe asks a Kafka cluster for its metadata until the expected number of brokers is in it, and can grant one user
// everything. scripts/brokers uses it to know when a broker is ready: an open port is not enough, a node listens before it has
// joined its cluster.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

func main() {
	var (
		brokers   = flag.String("brokers", "", "addresses, separated by commas")
		count     = flag.Int("count", 1, "brokers that the metadata has to name")
		within    = flag.Duration("within", 60*time.Second, "how long to go on asking")
		authority = flag.String("ca", "", "PEM file with the certificate authority; empty: no TLS")
		user      = flag.String("user", "", "user for SASL PLAIN; its password is in PROBE_PASSWORD")
		grant     = flag.String("grant", "", "user that may do everything, once the cluster is ready")
		pidFiles  = flag.String("pid-files", "", "files with process ids; give up at once when one of these processes is gone")
	)
	flag.Parse()
	if err := run(*brokers, *count, *within, *authority, *user, *grant, *pidFiles); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(brokers string, count int, within time.Duration, authority, user, grant, pidFiles string) error {
	options := []kgo.Opt{
		kgo.SeedBrokers(strings.Split(brokers, ",")...),
		kgo.RequestRetries(0),
		kgo.DialTimeout(time.Second),
	}
	if authority != "" {
		pem, err := os.ReadFile(authority)
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return fmt.Errorf("no certificate in %s", authority)
		}
		options = append(options, kgo.DialTLSConfig(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}))
	}
	if user != "" {
		options = append(options, kgo.SASL(plain.Auth{User: user, Pass: os.Getenv("PROBE_PASSWORD")}.AsMechanism()))
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()

	// A client of its own for each question: a client that has met a closed port waits longer before it dials again.
	ask := func(question func(context.Context, *kadm.Client) error) error {
		client, err := kgo.NewClient(options...)
		if err != nil {
			return err
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		return question(ctx, kadm.NewClient(client))
	}
	for {
		err := ask(func(ctx context.Context, client *kadm.Client) error { return complete(ctx, client, count) })
		if err == nil {
			break
		}
		if gone := processesGone(pidFiles); gone != nil {
			return gone
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not answer as expected within %v: %w", brokers, within, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	if grant == "" {
		return nil
	}
	return ask(func(ctx context.Context, client *kadm.Client) error { return grantAll(ctx, client, grant) })
}

// complete fails until the metadata names a controller and all the brokers.
func complete(ctx context.Context, client *kadm.Client, count int) error {
	metadata, err := client.BrokerMetadata(ctx)
	if err != nil {
		return err
	}
	if metadata.Controller < 0 {
		return errors.New("no controller yet")
	}
	if len(metadata.Brokers) < count {
		return fmt.Errorf("%d of %d brokers", len(metadata.Brokers), count)
	}
	return nil
}

func grantAll(ctx context.Context, client *kadm.Client, user string) error {
	rules := kadm.NewACLs().
		Allow("User:" + user).AllowHosts("*").
		Topics("*").Groups("*").TransactionalIDs("*").Clusters().
		ResourcePatternType(kmsg.ACLResourcePatternTypeLiteral).
		Operations(kmsg.ACLOperationAll)
	results, err := client.CreateACLs(ctx, rules)
	if err != nil {
		return err
	}
	for _, result := range results {
		if result.Err != nil {
			return fmt.Errorf("grant %s on %s %q: %w", user, result.Type, result.Name, result.Err)
		}
	}
	return nil
}

func processesGone(files string) error {
	if files == "" {
		return nil
	}
	for file := range strings.SplitSeq(files, ",") {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return fmt.Errorf("process %d ended", pid)
		}
	}
	return nil
}
