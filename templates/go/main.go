// Serves the function's Handle to the watchdog on the loopback address.
package main

import (
	"context"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	function "handler/function"
)

const drain = 25 * time.Second

func main() {
	address := "127.0.0.1:8082"
	if upstream, err := url.Parse(os.Getenv("upstream_url")); err == nil && upstream.Port() != "" {
		address = "127.0.0.1:" + upstream.Port()
	}
	// The watchdog is the only client and keeps the time itself.
	server := &http.Server{Addr: address, Handler: http.HandlerFunc(function.Handle)}

	done := make(chan struct{})
	go func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
		<-signals
		ctx, cancel := context.WithTimeout(context.Background(), drain)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			log.Printf("shutdown: %v", err)
		}
		close(done)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-done
}
