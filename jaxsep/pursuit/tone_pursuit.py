"""Sparse pursuit of tones: greedy selection and joint refinement (P1)."""
import equinox as eqx
import jax, jax.numpy as jnp
from jaxsep.pursuit import refinement as R
from jaxsep.pursuit.lanes import run_lanes, map_lanes, queue, default_lanes
from jaxsep.tones.tones import *
from jaxsep.tones.axes import LogAxis
from jaxsep.tones.rendering import render, add_windows, window_offsets
import math

def pattern_bank(dictionary, axis, lift):
    """conj FFTs of lifted unit tones, normalised; norms"""
    I,H=dictionary.shape
    reach=len(window_offsets(jnp.float32))//2
    span=math.ceil(axis.bins_per_neper*math.log(H))+2*reach+1
    n=1<<(axis.num_bins+span-1).bit_length()
    n = next_fast(axis.num_bins+span)
    pos=reach+axis.bins_per_neper*jnp.log(jnp.arange(1,H+1,dtype=dictionary.dtype))
    near=jnp.round(pos).astype(jnp.int32)
    x=(near-pos)[:,None]+window_offsets(dictionary.dtype)
    g=jnp.exp(-0.5*(x/SINUSOID_WIDTH)**2)
    pat=jax.vmap(lambda d: add_windows(g*d[:,None],near,span)[0])(dictionary)
    pat=R._power(pat,lift)
    norm=jnp.sqrt(jnp.sum(pat**2,1))
    safe=jnp.where(norm>0,norm,1)
    ft=jnp.conj(jnp.fft.rfft(pat/safe[:,None],n))
    ft=ft*jnp.exp(-2j*jnp.pi*jnp.arange(n//2+1)*reach/n).astype(ft.dtype)
    return ft,jnp.where(norm>0,1/safe,0)

def next_fast(n):
    best=1<<(n-1).bit_length()
    for p in (1,3,5,9,15):
        k=p
        while k<n: k*=2
        best=min(best,k)
    return best

def correlate(r,bank,num_bins):
    ft,inv=bank
    n=(ft.shape[1]-1)*2
    return jnp.fft.irfft(jnp.fft.rfft(r,n)[None]*ft,n)[:,:num_bins]

def pursue(spectra, dictionary, axis, tones_per_instrument=1, tol=1e-3, tolpol=1e-4, beta=0.9, lanes=16, max_steps=60, hopeless=10., offset=1e-7):
    F,m=spectra.shape; I,H=dictionary.shape
    lf=R.LiftedLoss(axis, offset=offset); q=lf.lift
    dt=spectra.dtype
    target=lf.lifted(spectra)
    cap=I*tones_per_instrument
    bank=pattern_bank(dictionary,axis,q)
    wl,wh=width_bounds()
    lo=jnp.array([0,-jnp.inf,wl,0.],dt); hi=jnp.array([jnp.inf,jnp.inf,wh,MAX_INHARMONICITY],dt)
    blank=jnp.array([0,0,SINUSOID_WIDTH,0],dt)
    base=lf.lifted(jnp.zeros((),dt))
    loss=0.5*jnp.sum((target-base)**2,1)
    state=dict(theta=jnp.tile(blank,(F,cap,1)),inst=jnp.zeros((F,cap),jnp.int32),active=jnp.zeros((F,cap),bool),loss=loss,live=loss>0, steps=jnp.zeros(F,jnp.int32))
    def model(theta,harm):
        return jnp.sum(theta[:,0:1]**(1/q)*lf._columns(theta,harm)[:,0],0)
    def refine(K,theta,inst,active,mask,goal,tol):
        bounds=(jnp.tile(lo,(K,1)),jnp.tile(hi,(K,1)))
        order,count=queue(mask)
        def stp(i,s):
            t=jnp.where(s.loss>goal[i],tol*hopeless,tol)
            return R.step(lf,s,active[i],dictionary[inst[i]],target[i],t,bounds)
        th,ls,st=run_lanes(lambda i:R.start(theta[i]),stp,lambda s:s.converged|(s.steps>=max_steps),lambda s:(s.theta,s.loss,s.steps),
             order,count,(theta,jnp.full(F,jnp.inf,dt),jnp.zeros(F,jnp.int32)),lanes)
        return th,ls,st
    def round_(K,state):
        pad=lambda x,v: jnp.concatenate([x[:,:min(K,cap)],jnp.full((F,K-min(K,cap))+x.shape[2:],v,x.dtype)],1) if K>cap else x[:,:K]
        theta=pad(state['theta'],0.).at[:,:,2].max(wl); inst=pad(state['inst'],0); active=pad(state['active'],False)
        live=state['live']
        order,count=queue(live)
        def sel(i):
            r=target[i]-lf.lifted(_model1(lf,theta[i],dictionary[inst[i]]))
            c=correlate(r,bank,m)
            k=jnp.argmax(c); ii=k//m; 
            return c.reshape(-1)[k]*bank[1][ii],k%m,ii
        al,sh,ii=map_lanes(sel,order,count,(jnp.zeros(F,dt),jnp.zeros(F,jnp.int32),jnp.zeros(F,jnp.int32)),lanes)
        live=live&(al>0)
        slot=jnp.argmin(active,1)
        hot=jax.nn.one_hot(slot,K,dtype=bool)
        new=jnp.stack([al,sh.astype(dt),jnp.full(F,SINUSOID_WIDTH,dt),jnp.zeros(F,dt)],1)
        theta=jnp.where(hot[...,None],new[:,None],theta); inst=jnp.where(hot,ii[:,None],inst); active=active|hot
        goal=beta**2*state['loss']
        theta,loss,st=refine(K,theta,inst,active,live,goal,tol)
        # prune
        same=(inst[:,:,None]==inst[:,None])&active[:,None]
        amp=theta[...,0]; idx=jnp.arange(K)
        larger=(amp[:,None]>amp[:,:,None])|((amp[:,None]==amp[:,:,None])&(idx[None,None]<idx[None,:,None]))
        keep=active&(jnp.sum(same&larger,-1)<tones_per_instrument)&(amp>0)
        pruned=jnp.any(keep!=active,1)
        o=jnp.argsort(~keep,axis=1,stable=True)
        take=lambda x: jnp.take_along_axis(x,o.reshape(o.shape+(1,)*(x.ndim-2)),1)
        theta,inst,active=take(jnp.where(keep[...,None],theta,blank)),take(jnp.where(keep,inst,0)),take(keep)
        K2=min(K,cap)
        theta,inst,active=theta[:,:K2],inst[:,:K2],active[:,:K2]
        again=live&pruned
        th2,ls2,st2=refine(K2,theta,inst,active,again,goal,tol)
        loss=jnp.where(again,ls2,loss)
        ok=live&(loss<goal)
        padc=lambda x,old: old.at[:,:K2].set(jnp.where(ok.reshape((F,)+(1,)*(x.ndim-1)),x,old[:,:K2]))
        return dict(theta=padc(th2,state['theta']),inst=padc(inst,state['inst']),active=padc(active,state['active']),loss=jnp.where(ok,loss,state['loss']),live=ok,steps=state['steps']+st+jnp.where(again,st2,0))
    total=2*cap
    k=1
    while k<=cap:
        state=round_(k,state); k+=1
    state=jax.lax.fori_loop(k,total+1,lambda i,s: round_(cap+1,s),state)
    th,ls,st=refine(cap,state['theta'],state['inst'],state['active'],jnp.any(state['active'],1),jnp.full(F,jnp.inf,dt),tolpol)
    state['theta']=th; state['loss']=jnp.where(jnp.any(state['active'],1),ls,state['loss']); state['steps']+=st
    return state

def _model1(lf,theta,harm):
    I=theta.shape[0]
    t=Tones(theta[:,0]**(1/lf.lift),theta[:,1],theta[:,2],theta[:,3],jnp.arange(I),jnp.ones(I,bool))
    return render(t,harm,lf.axis,method='windowed')
