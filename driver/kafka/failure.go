package kafka

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// explain adds to an error of the client what was tried and what its likely
// cause is. Nothing in it is secret.
func (d *Driver) explain(what string, err error) error {
	if cause := d.cause(err); cause != "" {
		return fmt.Errorf("kafka: %s: %s: %w", what, cause, err)
	}
	return fmt.Errorf("kafka: %s: %w", what, err)
}

func (d *Driver) cause(err error) string {
	o := &d.options
	brokers := strings.Join(o.Brokers, ", ")
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Sprintf("the certificate of %s is signed by an authority that is not known here: add it to Options.TLS.RootCAs", brokers)
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Sprintf("the certificate of %s is for another name: set Options.TLS.ServerName or the broker's advertised name", brokers)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Sprintf("the certificate of %s is not valid", brokers)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fmt.Sprintf("%s does not speak TLS at this port: Options.TLS is set, try without or another port", brokers)
	}
	switch {
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return fmt.Sprintf("%s refused %s: wrong password, or the user does not exist", brokers, o.SASL)
	case errors.Is(err, kerr.UnsupportedSaslMechanism):
		return fmt.Sprintf("%s does not offer %s: Options.SASL.Mechanism must be one of its enabled mechanisms", brokers, o.SASL.Mechanism)
	case errors.Is(err, kerr.IllegalSaslState):
		return fmt.Sprintf("%s expects no SASL at this port, or another order of it: Options.SASL is %s", brokers, o.SASL)
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		return fmt.Sprintf("%s may not do this: grant the user Describe, and Read to subscribe or Write to publish, on the topic (Create on the cluster to provision)", d.who())
	case errors.Is(err, kerr.GroupAuthorizationFailed):
		return fmt.Sprintf("%s may not do this: grant the user Read and Describe on the group", d.who())
	case errors.Is(err, kerr.ClusterAuthorizationFailed):
		return fmt.Sprintf("%s may not do this: grant the user Create on the cluster, or create topics for it; idempotent writing needs IdempotentWrite on brokers before 2.8", d.who())
	case errors.Is(err, kerr.InvalidReplicationFactor):
		return "the cluster has fewer brokers than Options.ReplicationFactor asks for"
	}
	// The client tells these apart in words only.
	if strings.Contains(err.Error(), "tls alert record") {
		return fmt.Sprintf("%s expects TLS at this port, and Options.TLS is not set", brokers)
	}
	if _, ok := errors.AsType[*kgo.ErrFirstReadEOF](err); ok {
		switch {
		case o.TLS == nil:
			return fmt.Sprintf("%s closed the connection at once: it probably expects TLS (Options.TLS is not set) or SASL (Options.SASL is %s)", brokers, o.SASL)
		case strings.Contains(err.Error(), "after a dial"):
			return fmt.Sprintf("%s closed the connection at once: it probably does not speak TLS at this port, and Options.TLS is set", brokers)
		}
		return fmt.Sprintf("%s closed the connection at once: it probably expects SASL, and Options.SASL is %s", brokers, o.SASL)
	}
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
		return fmt.Sprintf("%s cannot be reached", brokers)
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Sprintf("the name of %s cannot be resolved", brokers)
	}
	return ""
}

func (d *Driver) who() string {
	if d.options.SASL.User == "" {
		return "a client without a user"
	}
	return fmt.Sprintf("user %q", d.options.SASL.User)
}
